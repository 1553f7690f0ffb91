"""Shares of a sliding minute and of whole steps, from readings with times set by hand."""

from __future__ import annotations

import pytest

from orchestrator.scaling.utilisation import LEAST_SECONDS, WINDOW_SECONDS, Reading, RoleUse, Window

TOTALS = ("rollout", "learner")


def reading(at: float, step: int, rollout: float, learner: float, waited: float, members: int = 2) -> Reading:
    """Totals of two or more rollouts and a learner, present since time 0."""
    return Reading(at, step, {"rollout": rollout, "learner": learner}, {"rollout": members * at, "learner": at}, waited)


def test_there_are_no_shares_before_two_readings() -> None:
    window = Window()
    assert window.last_minute() is None and window.whole_steps() is None
    window.add(reading(5.0, 0, 3.0, 1.0, 1.0))
    assert window.last_minute() is None


def test_shares_are_of_member_seconds_and_the_learners_wait_is_measured() -> None:
    window = Window()
    window.add(reading(0.0, 0, 0.0, 0.0, 0.0))
    window.add(reading(10.0, 0, 15.0, 4.0, 5.0))
    use = window.last_minute()
    assert use is not None and use.seconds == 10.0
    assert use.shares == {"rollout": RoleUse(2.0, 0.75, 0.25), "learner": RoleUse(1.0, 0.4, 0.5)}


def test_readings_older_than_a_minute_do_not_count() -> None:
    """Busy for a minute, then idle for a minute, in readings a second apart."""
    window = Window()
    for second in range(121):
        window.add(reading(float(second), 0, 2.0 * min(second, 60), 0.0, 0.0))
        use = window.last_minute()
        assert use is None or use.seconds <= WINDOW_SECONDS
    assert use is not None and use.shares["rollout"].busy == 0.0


def test_readings_are_dropped_as_they_age() -> None:
    window = Window()
    for tick in range(5000):
        window.add(reading(tick / 10.0, tick // 20, 0.0, 0.0, 0.0))
    assert len(window._recent) == 601 and len(window._ends) <= 31


def test_a_role_without_a_member_in_the_window_has_no_share() -> None:
    window = Window()
    for at in (0.0, 1.0):
        window.add(Reading(at, 0, {"rollout": 0.0, "learner": at}, {"rollout": 0.0, "learner": at}, 0.0))
    use = window.last_minute()
    assert use is not None and set(use.shares) == {"learner"}


def test_whole_steps_do_not_depend_on_where_in_a_step_the_minute_ends() -> None:
    """Steps of 100 s: 70 s of rollout, then 30 s of learning. A minute sees one of the two; whole steps see both."""
    window = Window()
    for second in range(1000):
        step, within = divmod(second, 100)
        learned = 30.0 * step + max(0, within - 70)
        window.add(reading(float(second), step, second - learned, learned, second - learned, members=1))
        if second >= 200:
            use = window.whole_steps()
            assert use is not None and use.steps == use.seconds / 100.0 == 1
            assert use.shares["rollout"].busy == pytest.approx(0.7)
            assert use.shares["learner"] == RoleUse(1.0, pytest.approx(0.3), pytest.approx(0.7))
        elif second < 100:
            assert window.whole_steps() is None


def test_short_steps_are_taken_together_to_a_minute() -> None:
    window = Window()
    for second in range(300):
        window.add(reading(float(second), second // 2, 0.0, 0.0, 0.0))
    use = window.whole_steps()
    assert use is not None and use.steps == use.seconds / 2 and use.seconds == WINDOW_SECONDS


def test_too_short_a_time_of_whole_steps_gives_no_shares() -> None:
    window, known = Window(), []
    for second in range(30):
        window.add(reading(float(second), second, 0.0, 0.0, 0.0))
        known.append(window.whole_steps() is not None)
    assert known.index(True) == LEAST_SECONDS + 1 and all(known[known.index(True) :])


@pytest.mark.parametrize("how", ["restart", "back"])
def test_whole_steps_restart_with_other_members_and_when_steps_go_back(how: str) -> None:
    window = Window()
    for second in range(100):
        window.add(reading(float(second), second // 5, 0.0, 0.0, 0.0))
    assert window.whole_steps() is not None
    if how == "restart":
        window.restart()
    window.add(reading(100.0, 20 if how == "restart" else 10, 0.0, 0.0, 0.0))
    assert window.whole_steps() is None
    assert window.last_minute() is not None
