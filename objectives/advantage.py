"""Advantages of whole responses, from rewards alone. Plain numbers: the orchestrator calls this on headers.

Shao et al. 2024 (GRPO) for the group mean, Ahmadian et al. 2024 (RLOO) for leave-one-out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def group_advantages(rewards: Sequence[float], groups: Sequence[str], baseline: str) -> list[float]:
    """Reward minus its group's baseline, one number a response.

    `none`: the reward itself. `mean`: the group's mean, the sample included, which scales the mean gradient by
    (n-1)/n. `rloo`: the mean of the others; unbiased. A group of one has advantage 0 under both.
    Raises ValueError for an unknown baseline.
    """
    if baseline == "none":
        return list(rewards)
    if baseline not in ("mean", "rloo"):
        raise ValueError(f"baseline {baseline!r} is unknown; use none, mean or rloo")
    members: dict[str, list[float]] = defaultdict(list)
    for reward, group in zip(rewards, groups, strict=True):
        members[group].append(reward)
    return [_centred(reward, members[group], baseline) for reward, group in zip(rewards, groups, strict=True)]


def _centred(reward: float, group: list[float], baseline: str) -> float:
    n = len(group)
    centred = reward - sum(group) / n
    return centred * n / (n - 1) if baseline == "rloo" and n > 1 else centred
