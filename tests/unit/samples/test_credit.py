"""From rewards to advantages: whose count, what is subtracted, and which groups say nothing."""

from __future__ import annotations

from typing import Any

import pytest

from actors.wire.records import SampleHeader
from configs.schema import Recipe
from orchestrator.samples import credit
from orchestrator.samples.buffer import Scored
from tests.unit.recipes import REWARDED, loaded

GROUPED = REWARDED | {"batch.samples_per_prompt": 2}


def recipe(**outcome: Any) -> Recipe:
    return loaded(GROUPED | {"objective.outcome": {"weight": 1.0} | outcome})


def scored(uid: str, reward: float | None, source: str = "student", finish: str = "stop") -> Scored:
    header = SampleHeader(uid, uid.split(".")[0], 0, 1, 4, 4, finish, ((0, 4),))
    return Scored(header, None, reward=reward, source=source)


def test_a_shaped_reward_is_weight_times_reward_less_beta_times_the_references_sum() -> None:
    batch = [scored("a.0", 1.0), scored("a.1", 3.0)]
    shaped = credit.shaped_rewards(recipe(weight=2.0), batch, 0.5, {"a.0": 4.0, "a.1": -1.0})
    assert shaped == {"a.0": 2.0 - 2.0, "a.1": 6.0 + 0.5}


def test_without_a_reference_or_a_reward_nothing_is_added() -> None:
    assert credit.shaped_rewards(recipe(), [scored("a.0", None), scored("a.1", 1.0)], 0.5, {}) == {"a.0": 0, "a.1": 1}


@pytest.mark.parametrize("source", ["teacher", "dataset"])
def test_what_the_student_did_not_draw_has_no_share(source: str) -> None:
    batch = [scored("a.0", 1.0), scored("b.0", 9.0, source)]
    assert credit.shaped_rewards(recipe(), batch, 0.0, {}).keys() == {"a.0"}


@pytest.mark.parametrize(("truncated", "rewards"), [("train", [5.0, 3.0]), ("mask", [5.0, 3.0]), ("as_zero", [0, 3.0])])
def test_a_cut_response_keeps_its_reward_unless_it_counts_as_zero(truncated: str, rewards: list[float]) -> None:
    batch = [scored("a.0", 5.0, finish="length"), scored("a.1", 3.0)]
    assert list(credit.shaped_rewards(recipe(truncated=truncated), batch, 0.0, {}).values()) == rewards


def test_a_response_that_counts_as_zero_still_pays_for_leaving_the_reference() -> None:
    shaped = credit.shaped_rewards(recipe(truncated="as_zero"), [scored("a.0", 5.0, finish="length")], 0.5, {"a.0": 2})
    assert shaped == {"a.0": -1.0}


def test_a_gate_that_weighs_nothing_still_selects_by_the_reward() -> None:
    rejection = {"objective.target": "data", "objective.reverse_weight": 0.0, "objective.outcome": {"combine": "gate"}}
    gated = loaded(GROUPED | rejection)
    assert gated.objective.needs_advantages and not gated.objective.rewarded
    shaped = credit.shaped_rewards(gated, [scored("a.0", 1.0), scored("a.1", 0.0)], 0.0, {})
    assert credit.advantages(gated, shaped, {"a.0": "a", "a.1": "a"}) == {"a.0": 1.0, "a.1": 0.0}


GROUPS = {"a.0": "a", "a.1": "a", "b.0": "b", "b.1": "b"}
SHAPED = {"b.1": 1.0, "a.0": 1.0, "a.1": 3.0, "b.0": 1.0}


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ({}, SHAPED),
        ({"baseline": "mean"}, {"a.0": -1.0, "a.1": 1.0, "b.0": 0.0, "b.1": 0.0}),
        ({"baseline": "rloo"}, {"a.0": -2.0, "a.1": 2.0, "b.0": 0.0, "b.1": 0.0}),
        ({"baseline": "value"}, SHAPED),
        ({"baseline": "mean", "scale": "std"}, {"a.0": -(0.5**0.5), "a.1": 0.5**0.5, "b.0": 0.0, "b.1": 0.0}),
    ],
    ids=str,
)
def test_an_advantage_is_within_its_own_group(outcome: dict[str, Any], expected: dict[str, float]) -> None:
    assert credit.advantages(recipe(**outcome), SHAPED, GROUPS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [3, 7, 8, 48])
@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("baseline", ["mean", "rloo"])
def test_a_group_that_is_shaped_alike_has_no_advantage_on_any_rank(baseline: str, scale: str, size: int) -> None:
    """weight 0.7, a reward of 0.1 + 0.2 or 0.3, and a reference at the same distance from all."""
    uids = [f"a.{number}" for number in range(size)]
    batch = [scored(uid, (0.3, 0.1 + 0.2)[number % 2]) for number, uid in enumerate(uids)]
    one = recipe(weight=0.7, baseline=baseline, scale=scale)
    shaped = credit.shaped_rewards(one, batch, 0.1, dict.fromkeys(uids, 1 / 3))
    assert credit.advantages(one, shaped, dict.fromkeys(uids, "a")) == dict.fromkeys(uids, 0.0)
    assert credit.groups_without_signal(batch) == 1.0


def test_groups_without_signal_are_those_whose_rewards_are_all_equal() -> None:
    batch = [scored("a.0", 1.0), scored("a.1", 1.0), scored("b.0", 1.0), scored("b.1", 0.0)]
    assert credit.groups_without_signal(batch) == 0.5
    assert credit.groups_without_signal(batch[:2]) == 1.0
    assert credit.groups_without_signal(batch[2:]) == 0.0


def test_groups_of_one_and_samples_without_rewards_say_nothing_of_signal() -> None:
    assert credit.groups_without_signal([scored("a.0", 1.0), scored("b.0", 1.0)]) is None
    assert credit.groups_without_signal([scored("a.0", None), scored("a.1", None)]) is None
    mixed = [scored("a.0", 1.0), scored("b.0", 1.0), scored("b.1", 1.0)]
    assert credit.groups_without_signal(mixed) == 1.0
