"""Diagnoses for runs of known speed: overlapping roles by their capacities, alternating phases by their lengths."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator.scaling.bottleneck import Figures, RoleFigures, find_bottleneck

MEMBERS = st.fixed_dictionaries({role: st.integers(1, 8) for role in ("rollout", "scorer.teacher", "reward")})
COSTS = st.fixed_dictionaries(
    {role: st.floats(0.01, 5.0) for role in ("rollout", "scorer.teacher", "reward", "learner")}
)  # member-seconds a sample


def pipeline(members: dict[str, int], costs: dict[str, float]) -> Figures:
    """Measurements of overlapping roles without losses: the slowest sets the pace."""
    pace = min(members.get(role, 1) / cost for role, cost in costs.items())
    roles = {}
    for role, cost in costs.items():
        busy = pace * cost / members.get(role, 1)
        roles[role] = RoleFigures(members.get(role, 1), busy, 1.0 - busy, role in members)
    return Figures(roles, pace, max_staleness=1)


def alternation(members: dict[str, int], costs: dict[str, float], idle: float = 0.0) -> Figures:
    """Measurements of alternating phases: a pipeline of all roles but the learner, then the learner. `idle`: seconds a
    sample in which the learner waits and no role works."""
    work = {role: cost / members.get(role, 1) for role, cost in costs.items()}
    wait = max(seconds for role, seconds in work.items() if role != "learner") + idle
    length = wait + work["learner"]
    roles = {}
    for role, seconds in work.items():
        busy = seconds / length
        waiting = wait / length if role == "learner" else 1.0 - busy
        roles[role] = RoleFigures(members.get(role, 1), busy, waiting, role in members)
    return Figures(roles, 1.0 / length, max_staleness=0)


@settings(deadline=None)
@given(MEMBERS, COSTS)
def test_a_pipeline_is_predicted_exactly(members: dict[str, int], costs: dict[str, float]) -> None:
    figures = pipeline(members, costs)
    diagnosis = find_bottleneck(figures)
    assert diagnosis is not None
    assert diagnosis.busy == pytest.approx(1.0) and diagnosis.throughput == figures.throughput
    assert set(diagnosis.prospects) == set(members), "the learner is not elastic"
    for role, prospect in diagnosis.prospects.items():
        after = pipeline(members | {role: members[role] + 1}, costs)
        assert figures.throughput * (1.0 + prospect.more) == pytest.approx(after.throughput)
        if members[role] > 1:
            after = pipeline(members | {role: members[role] - 1}, costs)
            assert figures.throughput * (1.0 + prospect.fewer) == pytest.approx(after.throughput)
            assert prospect.work_with_fewer == pytest.approx(after.roles[role].busy)
        else:
            assert prospect.fewer == -1.0, "the last one takes everything with it"


@settings(deadline=None)
@given(MEMBERS, COSTS, st.floats(0.0, 2.0))
def test_an_alternation_is_predicted_exactly(members: dict[str, int], costs: dict[str, float], idle: float) -> None:
    figures = alternation(members, costs, idle)
    diagnosis = find_bottleneck(figures)
    assert diagnosis is not None
    for role, prospect in diagnosis.prospects.items():
        after = alternation(members | {role: members[role] + 1}, costs, idle)
        assert figures.throughput * (1.0 + prospect.more) == pytest.approx(after.throughput)
        if members[role] > 1:
            after = alternation(members | {role: members[role] - 1}, costs, idle)
            assert figures.throughput * (1.0 + prospect.fewer) == pytest.approx(after.throughput)
            assert prospect.work_with_fewer == pytest.approx(after.roles[role].busy)


@settings(deadline=None)
@given(MEMBERS, COSTS, st.sampled_from([pipeline, alternation]))
def test_only_the_bottleneck_is_worth_another_member(
    members: dict[str, int], costs: dict[str, float], model: type[Figures]
) -> None:
    figures = model(members, costs)  # type: ignore[arg-type]
    diagnosis = find_bottleneck(figures)
    assert diagnosis is not None
    work = sorted((1.0 - role.waiting for name, role in figures.roles.items()), reverse=True)
    assume(work[0] - work[1] > 1e-6)
    worth = {role for role, prospect in diagnosis.prospects.items() if prospect.more > 1e-9}
    if figures.max_staleness or diagnosis.bottleneck != "learner":
        assert worth == {diagnosis.bottleneck} - {"learner"}
    else:
        assert len(worth) <= 1, "behind a longer learner, the role with most work still shortens the step"


def figures(max_staleness: int, throughput: float = 10.0, **busy: float) -> Figures:
    """One member each; the learner waits when it does not work."""
    roles = {name: RoleFigures(1.0, share, 1.0 - share, name != "learner") for name, share in busy.items()}
    return Figures(roles, throughput, max_staleness)


def test_the_second_busiest_role_bounds_what_the_bottleneck_gains() -> None:
    diagnosis = find_bottleneck(figures(1, rollout=0.97, scorer=0.3, learner=0.74))
    assert diagnosis is not None and (diagnosis.bottleneck, diagnosis.busy) == ("rollout", 0.97)
    assert diagnosis.prospects["rollout"].more == pytest.approx(0.97 / 0.74 - 1.0)
    assert diagnosis.prospects["scorer"].more == 0.0


def test_a_learner_that_never_waits_is_the_bottleneck() -> None:
    """While it publishes, saves or evaluates, it cannot take another batch."""
    roles = {"rollout": RoleFigures(1.0, 0.8, 0.2, True), "learner": RoleFigures(1.0, 0.5, 0.05, False)}
    diagnosis = find_bottleneck(Figures(roles, 1.0, max_staleness=2))
    assert diagnosis is not None and (diagnosis.bottleneck, diagnosis.busy) == ("learner", 0.5)
    assert diagnosis.prospects["rollout"].more == 0.0


def test_in_alternation_the_bottleneck_is_in_the_longer_phase() -> None:
    for learner, bottleneck in ((0.4, "rollout"), (0.6, "learner")):
        diagnosis = find_bottleneck(figures(0, rollout=0.9 - learner, scorer=0.1, learner=learner))
        assert diagnosis is not None and diagnosis.bottleneck == bottleneck
        assert diagnosis.prospects["rollout"].more > 0.0


def test_work_beyond_the_learners_wait_does_not_count() -> None:
    """An evaluation's sampling does not count as work of the step."""
    diagnosis = find_bottleneck(figures(0, rollout=0.9, learner=0.5))
    assert diagnosis is not None and diagnosis.prospects["rollout"].more == pytest.approx(1.0 / 0.75 - 1.0)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_without_data_there_is_no_verdict(max_staleness: int) -> None:
    assert find_bottleneck(figures(max_staleness, throughput=0.0, rollout=0.9, learner=0.1)) is None
    assert find_bottleneck(figures(max_staleness, rollout=0.9)) is None
    assert find_bottleneck(figures(max_staleness, rollout=0.0, learner=0.0)) is None
