"""Group advantages, returns and GAE as functions, against slow formulas."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch

from objectives.advantage import STD_EPSILON, all_equal, generalised_advantages, group_advantages, returns_to_go
from tests.objectives.enumeration import assert_equal

REWARDS, GROUPS = [1.0, 10.0, 3.0, 20.0, 5.0, -4.0], list("abaaba")


def others(i: int) -> list[float]:
    return [r for j, (r, g) in enumerate(zip(REWARDS, GROUPS, strict=True)) if g == GROUPS[i] and j != i]


def members(i: int) -> list[float]:
    return [r for r, g in zip(REWARDS, GROUPS, strict=True) if g == GROUPS[i]]


SLOW = {
    "none": lambda i: REWARDS[i],
    "mean": lambda i: REWARDS[i] - statistics.mean(members(i)),
    "rloo": lambda i: REWARDS[i] - statistics.mean(others(i)),
}


@pytest.mark.parametrize("baseline", SLOW)
def test_groups_are_centred_apart_in_any_order(baseline: str) -> None:
    assert group_advantages(REWARDS, GROUPS, baseline) == pytest.approx([SLOW[baseline](i) for i in range(6)])


@pytest.mark.parametrize("baseline", SLOW)
def test_scale_std_divides_by_the_groups_sample_standard_deviation(baseline: str) -> None:
    expected = [SLOW[baseline](i) / (statistics.stdev(members(i)) + STD_EPSILON) for i in range(6)]
    assert group_advantages(REWARDS, GROUPS, baseline, "std") == pytest.approx(expected)


@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("baseline", ["mean", "rloo"])
def test_a_group_of_one_and_a_group_of_equals_have_no_advantage(baseline: str, scale: str) -> None:
    assert group_advantages([7.0, 2.0, 2.0], ["a", "b", "b"], baseline, scale) == [0.0, 0.0, 0.0]


UNEVEN = [0.7, 0.1 + 0.2, -1 / 3, 1e-9 / 3, 12345.678, -0.05 - 0.5 * 0.123]  # in binary none of them is exact
SIZES = (2, 3, 5, 6, 7, 8, 16, 48, 100, 1000)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("baseline", ["mean", "rloo"])
def test_equal_rewards_have_an_advantage_of_exactly_zero_whatever_they_are(
    baseline: str, scale: str, size: int
) -> None:
    for reward in UNEVEN:
        for kind in (float, np.float32):
            assert group_advantages([kind(reward)] * size, ["a"] * size, baseline, scale) == [0.0] * size


@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("baseline", ["mean", "rloo"])
def test_what_rounding_leaves_between_equal_sums_and_at_the_mean_is_exactly_zero(baseline: str, scale: str) -> None:
    sums = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.1 + 0.1]
    assert len(set(sums)) > 1 and all_equal(sums)
    assert group_advantages(sums, ["a"] * 4, baseline, scale) == [0.0] * 4
    low, middle, high = group_advantages([0.1, 0.2, 0.3], ["a"] * 3, baseline, scale)
    assert low < 0.0 < high and middle == 0.0


def test_a_small_difference_of_rewards_is_a_signal() -> None:
    rewards = [0.7, 0.7, 0.7 + 1e-12]
    assert not all_equal(rewards)
    below, _, above = group_advantages(rewards, ["a"] * 3, "mean")
    assert below < 0.0 < above


@pytest.mark.parametrize("given", [("median", "none"), ("mean", "range")])
def test_an_unknown_baseline_or_scale_is_refused(given: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="is unknown"):
        group_advantages([1.0], ["a"], *given)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 1.0])
def test_returns_are_the_discounted_sums_of_later_rewards(discount: float) -> None:
    rewards = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
    slow = [sum(discount ** (j - t) * rewards[j].item() for j in range(t, 4)) for t in range(4)]
    assert_equal(returns_to_go(rewards, discount), torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.95, 1.0])
def test_generalised_advantages_are_the_slow_double_sum(discount: float, decay: float) -> None:
    rewards = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
    values = torch.tensor([0.3, 1.0, -1.0, 2.0], dtype=torch.float64)
    before, v = values.clone(), [*values.tolist(), 0.0]
    errors = [rewards[t].item() + discount * v[t + 1] - v[t] for t in range(4)]
    slow = [sum((discount * decay) ** k * errors[t + k] for k in range(4 - t)) for t in range(4)]
    computed = generalised_advantages(rewards, values, discount, decay)
    assert_equal(computed, torch.tensor(slow, dtype=torch.float64))
    assert_equal(values, before)


def test_one_token_has_its_reward_less_its_value() -> None:
    one = torch.tensor([3.0]).double()
    assert_equal(generalised_advantages(one, 0.5 * one, 0.9, 0.9), 0.5 * one)
