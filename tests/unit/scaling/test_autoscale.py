"""When autoscaling changes a size, and that sizes settle, for runs whose speed follows from their members."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from configs.roles.sizes import Bounds
from orchestrator.scaling.autoscale import GROW_AFTER, SHRINK_AFTER, Autoscaler, Decision
from orchestrator.scaling.bottleneck import Diagnosis, Figures, Prospect, find_bottleneck
from tests.unit.scaling.test_bottleneck import COSTS, MEMBERS, alternation, pipeline

BOUNDS = {"rollout": Bounds(min=1, max=4)}
SIZES = {"rollout": 2, "reward": 2, "learner": 1}
GROWS = Diagnosis("rollout", 0.97, 10.0, {"rollout": Prospect(0.3, -0.5), "reward": Prospect(0.0, 0.0, 0.1)})
IDLES = Diagnosis("learner", 0.97, 10.0, {"rollout": Prospect(0.0, 0.0, 0.4), "reward": Prospect(0.0, 0.0, 0.1)})


def decisions(
    diagnoses: list[Diagnosis | None], sizes: dict[str, int] = SIZES, bounds: dict[str, Bounds] = BOUNDS
) -> list[tuple[str, int] | None]:
    scaler = Autoscaler(bounds)
    return [d and (d.role, d.size) for d in (scaler.decide(diagnosis, sizes, settled=True) for diagnosis in diagnoses)]


def test_a_bottleneck_grows_after_several_verdicts_in_a_row() -> None:
    assert decisions([GROWS] * GROW_AFTER) == [None] * (GROW_AFTER - 1) + [("rollout", 3)]


def test_an_idle_role_shrinks_later_than_a_bottleneck_grows() -> None:
    assert SHRINK_AFTER > GROW_AFTER
    assert decisions([IDLES] * SHRINK_AFTER) == [None] * (SHRINK_AFTER - 1) + [("rollout", 1)]


def test_another_or_an_unknown_verdict_resets_the_count() -> None:
    for other in (IDLES, None):
        found = decisions([*[GROWS] * (GROW_AFTER - 1), other, *[GROWS] * GROW_AFTER])
        assert found == [None] * (2 * GROW_AFTER - 1) + [("rollout", 3)]


def test_a_decision_or_a_joining_member_resets_the_count() -> None:
    scaler, sizes = Autoscaler(BOUNDS), dict(SIZES)
    for _ in range(GROW_AFTER - 1):
        assert scaler.decide(GROWS, sizes, settled=True) is None
    assert scaler.decide(GROWS, sizes, settled=False) is None
    for _ in range(GROW_AFTER - 1):
        assert scaler.decide(GROWS, sizes, settled=True) is None
    assert isinstance(scaler.decide(GROWS, sizes, settled=True), Decision)
    for _ in range(GROW_AFTER - 1):
        assert scaler.decide(GROWS, sizes, settled=True) is None


def test_sizes_stay_within_bounds_and_a_persons_size_outside_is_kept() -> None:
    many = 2 * SHRINK_AFTER
    assert decisions([GROWS] * many, SIZES | {"rollout": 4}) == [None] * many
    assert decisions([IDLES] * many, SIZES | {"rollout": 1}) == [None] * many
    assert decisions([GROWS, IDLES] * many, SIZES | {"rollout": 7}) == [None] * 2 * many
    assert decisions([IDLES] * many, SIZES | {"rollout": 7}) == [None] * many


def test_a_role_without_bounds_keeps_its_size() -> None:
    assert decisions([GROWS] * 20, bounds={"reward": Bounds(min=2, max=2)}) == [None] * 20
    assert decisions([GROWS] * 20, bounds={}) == [None] * 20


def test_a_role_that_found_no_place_does_not_grow_again() -> None:
    scaler = Autoscaler(BOUNDS)
    scaler.no_place("rollout")
    assert [scaler.decide(GROWS, SIZES, settled=True) for _ in range(20)] == [None] * 20


def test_growing_comes_before_shrinking_and_one_at_a_time() -> None:
    bounds = BOUNDS | {"reward": Bounds(min=1, max=4)}
    found = decisions([GROWS] * SHRINK_AFTER, bounds=bounds)
    assert found[GROW_AFTER - 1] == ("rollout", 3) and SHRINK_AFTER < 2 * GROW_AFTER + 1
    assert found.count(None) == SHRINK_AFTER - 2 and found[-1] == ("rollout", 3)


def test_a_small_gain_is_not_worth_a_member() -> None:
    diagnosis = Diagnosis("rollout", 0.97, 10.0, {"rollout": Prospect(0.04, -0.04, 0.9)})
    assert decisions([diagnosis] * 20) == [None] * 20


def test_a_decision_gives_its_reason() -> None:
    scaler = Autoscaler(BOUNDS)
    grown = [scaler.decide(GROWS, SIZES, settled=True) for _ in range(GROW_AFTER)][-1]
    assert grown is not None and grown.why == "the bottleneck, busy 97%; one more: +30% samples/s"
    shrunk = [scaler.decide(IDLES, SIZES, settled=True) for _ in range(SHRINK_AFTER)][-1]
    assert shrunk is not None and shrunk.why == "those that stay would work 40% of the time"


@settings(max_examples=60, deadline=None)
@given(MEMBERS, COSTS, st.sampled_from([pipeline, alternation]), st.data())
def test_sizes_settle_within_their_bounds(
    members: dict[str, int],
    costs: dict[str, float],
    model: Callable[[dict[str, int], dict[str, float]], Figures],
    data: st.DataObject,
) -> None:
    """For any costs: no role oscillates, and no throughput is lost."""
    bounds = {
        role: Bounds(min=data.draw(st.integers(1, size)), max=data.draw(st.integers(size, size + 5)))
        for role, size in members.items()
    }
    scaler, sizes, course, quiet = Autoscaler(bounds), dict(members), [], 0
    while quiet <= SHRINK_AFTER:
        decision = scaler.decide(find_bottleneck(model(sizes, costs)), sizes, settled=True)
        quiet = 0 if decision else quiet + 1
        if decision:
            course.append((decision.role, decision.size - sizes[decision.role]))
            assert abs(course[-1][1]) == 1
            assert bounds[decision.role].min <= decision.size <= bounds[decision.role].max
            sizes[decision.role] = decision.size
    assert not any((role, 1) in course[:i] for i, (role, change) in enumerate(course) if change < 0), course
    given_away = 0.99 ** sum(change < 0 for _, change in course)  # at most MAY_COST each
    assert model(sizes, costs).throughput >= model(members, costs).throughput * given_away * (1 - 1e-9)
