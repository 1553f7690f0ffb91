"""Advantages of responses, from their rewards (plain numbers, read in headers), and of tokens, from token rewards.

Shao et al. 2024 (GRPO) for the group mean and its std, Ahmadian et al. 2024 (RLOO) for leave-one-out, Schulman et al.
2016 (GAE). Dr. GRPO (arXiv 2503.20783) is the mean without the std.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

STD_EPSILON = 1e-6  # a group of equal rewards has advantage 0, not 0/0
ROUNDING = 2.0**-48  # relative to a group's largest reward: 16 units in the last place of a float64, lost in sums


def group_advantages(
    rewards: Sequence[float], groups: Sequence[str], baseline: str, scale: str = "none"
) -> list[float]:
    """Reward minus its group's baseline, one number a response.

    `none`: the reward itself. `mean`: the group's mean, the sample included, which scales the mean gradient by
    (n-1)/n. `rloo`: the mean of the others; unbiased. A group of one has advantage 0 under both. Groups
    of equal rewards have exactly 0, since a sign or a gate reads it. `scale: std` divides by the group's sample
    standard deviation. Raises ValueError for an unknown baseline or scale.
    """
    if baseline not in ("none", "mean", "rloo"):
        raise ValueError(f"baseline {baseline!r} is unknown; use none, mean or rloo")
    if scale not in ("none", "std"):
        raise ValueError(f"scale {scale!r} is unknown; use none or std")
    members: dict[str, list[float]] = defaultdict(list)
    for reward, group in zip(rewards, groups, strict=True):
        members[group].append(float(reward))
    found = {group: iter(_of_group(own, baseline, scale)) for group, own in members.items()}
    return [next(found[group]) for group in groups]


def all_equal(rewards: Sequence[float]) -> bool:
    """Whether rewards are equal up to rounding: 0.1 + 0.2 and 0.3 are."""
    return max(rewards) - min(rewards) <= ROUNDING * max(map(abs, rewards))


def returns_to_go(rewards: Tensor, discount: float) -> Tensor:
    """G_t = sum_{t' >= t} discount^(t' - t) r_t' of one response, [T] -> [T]. discount 0: the rewards themselves."""
    if discount == 1.0:
        return rewards.flip(0).cumsum(0).flip(0)
    returns, span = rewards, 1
    while span < len(rewards) and discount:  # returns holds sums over `span` tokens: join each with the next one
        joined = returns[:-span] + discount**span * returns[span:]
        returns, span = torch.cat([joined, returns[-span:]]), 2 * span
    return returns


def generalised_advantages(rewards: Tensor, values: Tensor, discount: float, decay: float) -> Tensor:
    """GAE: A_t = sum_k (discount * decay)^k delta_{t+k}, delta_t = r_t + discount V_{t+1} - V_t, V = 0 after the end.

    rewards, values: [T] of one response; values[t] is of the prefix before token t. Returns [T].
    """
    following = values.roll(-1)
    following[-1] = 0.0
    return returns_to_go(rewards + discount * following - values, discount * decay)


def _of_group(rewards: Sequence[float], baseline: str, scale: str) -> list[float]:
    """Advantages of one group. A deviation from the mean within rounding is exactly 0."""
    n, spread = len(rewards), _spread(rewards, scale)
    if baseline == "none":
        return [reward / spread for reward in rewards]
    mean, least = math.fsum(rewards) / n, ROUNDING * max(map(abs, rewards))
    factor = n / (n - 1) if baseline == "rloo" and n > 1 else 1.0
    return [0.0 if abs(reward - mean) <= least else (reward - mean) * factor / spread for reward in rewards]


def _spread(group: Sequence[float], scale: str) -> float:
    return statistics.stdev(group) + STD_EPSILON if scale == "std" and len(group) > 1 else 1.0
