"""Busy seconds of overlapping work, and counts since the last reading, on a clock set by hand."""

from __future__ import annotations

import pytest

from orchestrator.pools.telemetry import BusyClock, MemberClock, Meter


class Hand:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def hand() -> Hand:
    return Hand()


def test_overlapping_work_counts_once(hand: Hand) -> None:
    clock = BusyClock(hand)
    with clock.busy():
        hand.at += 2
        with clock.busy():
            hand.at += 3
        hand.at += 1
    hand.at += 10
    with clock.busy():
        hand.at += 4
    assert clock.total() == 10


def test_work_under_way_is_included(hand: Hand) -> None:
    clock = BusyClock(hand)
    with clock.busy():
        hand.at += 2
        assert clock.active and clock.total() == 2
    assert not clock.active


def test_work_that_fails_stops_the_clock(hand: Hand) -> None:
    clock = BusyClock(hand)
    with pytest.raises(ValueError, match="bad"), clock.busy():
        hand.at += 2
        raise ValueError("bad")
    hand.at += 5
    assert not clock.active and clock.total() == 2


def test_busy_members_add_up_and_each_counts_once(hand: Hand) -> None:
    clock = MemberClock(hand)
    with clock.busy(1):
        hand.at += 2
        with clock.busy(1), clock.busy(7):
            hand.at += 3
            assert clock.total() == 2 + 2 * 3
        hand.at += 1
    hand.at += 10
    assert clock.total() == 6 + 3


def test_work_of_a_member_that_fails_ends(hand: Hand) -> None:
    clock = MemberClock(hand)
    with pytest.raises(ValueError, match="bad"), clock.busy(0):
        hand.at += 2
        raise ValueError("bad")
    hand.at += 5
    assert clock.total() == 2


def test_a_reading_holds_what_came_since_the_last_one(hand: Hand) -> None:
    meter = Meter(hand)
    meter.count("tokens_generated", 5)
    meter.count("tokens_generated", 2)
    with meter.clock("learn").busy():
        hand.at += 3
    hand.at += 1
    assert meter.read_and_reset() == {"tokens_generated": 7, "seconds_learn": 3, "seconds_step": 4}
    hand.at += 2
    assert meter.read_and_reset() == {"seconds_learn": 0, "seconds_step": 2}


def test_work_across_a_reading_is_split_between_the_two(hand: Hand) -> None:
    meter = Meter(hand)
    with meter.clock("rollout").busy():
        hand.at += 3
        assert meter.read_and_reset()["seconds_rollout"] == 3
        hand.at += 4
    assert meter.read_and_reset()["seconds_rollout"] == 4


def test_working_names_the_roles_that_are_busy(hand: Hand) -> None:
    meter = Meter(hand)
    with meter.clock("rollout").busy(), meter.clock("score").busy():
        assert meter.working() == ("rollout", "score")
    assert meter.working() == ()


def test_only_payloads_that_ray_would_inline_are_counted(hand: Hand) -> None:
    meter = Meter(hand)
    meter.payload(1000)
    meter.payload(Meter.INLINE_LIMIT - 1)
    meter.payload(Meter.INLINE_LIMIT)
    assert meter.read_and_reset()["bytes_inlined"] == 1000 + Meter.INLINE_LIMIT - 1
