"""Rewards to advantages, one per response, from headers alone. Pure: no actors, no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from configs.schema import Recipe
from objectives.advantage import all_equal, group_advantages
from orchestrator.samples.buffer import Scored


def shaped_rewards(
    recipe: Recipe, batch: Sequence[Scored], beta: float, reference_sums: Mapping[str, float]
) -> dict[str, float]:
    """weight * R - beta * sum_t k1_t by uid, for the student's samples. `reference_sums` holds sum_t k1_t in nats.
    A weight of 0 counts as 1: such a reward only gates."""
    outcome = recipe.objective.outcome
    shaped: dict[str, float] = {}
    for scored in batch:
        if scored.source != "student":
            continue
        cut = outcome.truncated == "as_zero" and scored.header.finish == "length"
        reward = 0.0 if cut else scored.reward or 0.0
        shaped[scored.header.uid] = (outcome.weight or 1.0) * reward - beta * reference_sums.get(scored.header.uid, 0.0)
    return shaped


def advantages(recipe: Recipe, shaped: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """Each response's advantage within its group, by uid; with a value baseline, the shaped reward itself."""
    outcome = recipe.objective.outcome
    baseline = "none" if outcome.baseline == "value" else outcome.baseline
    uids = sorted(shaped)
    values = group_advantages([shaped[u] for u in uids], [groups[u] for u in uids], baseline, outcome.scale)
    return dict(zip(uids, values, strict=True))


def rewards_by_group(recipe: Recipe, batch: Sequence[Scored]) -> list[list[float]]:
    """Shaped rewards of the student's samples, group by group; empty if the objective needs no advantages."""
    if not recipe.objective.needs_advantages:
        return []
    rewarded = [scored for scored in batch if scored.reward is not None]
    shaped = shaped_rewards(recipe, rewarded, 0.0, {})
    groups: dict[str, list[float]] = {}
    for scored in rewarded:
        if scored.header.uid in shaped:
            groups.setdefault(scored.header.group, []).append(shaped[scored.header.uid])
    return list(groups.values())


def groups_without_signal(batch: Sequence[Scored]) -> float | None:
    """Share of groups of several rewards in which all are equal; None without such groups."""
    rewards: dict[str, list[float]] = {}
    for scored in batch:
        if scored.reward is not None and scored.source == "student":
            rewards.setdefault(scored.header.group, []).append(scored.reward)
    several = [own for own in rewards.values() if len(own) > 1]
    return sum(map(all_equal, several)) / len(several) if several else None
