"""Which prompt groups of a batch are replaced by fresh ones, because their equal rewards teach nothing (DAPO, arXiv
2503.14476, section 3.2). Pure.

Only groups of a batch that is whole are judged, each as a whole, so that no response is preferred for being short; the
groups that stay, and those that come, are trained in the order of their leases.
"""

from __future__ import annotations

from collections.abc import Mapping

from configs.schema import Recipe
from objectives.advantage import all_equal
from orchestrator.samples.buffer import Group
from orchestrator.samples.credit import rewards_by_group


def to_replace(recipe: Recipe, groups: Mapping[int, Group], replaced: int) -> tuple[int, ...]:
    """Indices of the groups without signal, the oldest first; no more than the step may still replace, after
    `replaced`."""
    left = max(0, recipe.batch.max_replacements - replaced)
    silent = (index for index, group in sorted(groups.items()) if left and not has_signal(recipe, group))
    return tuple(silent)[:left]


def has_signal(recipe: Recipe, group: Group) -> bool:
    """Whether two of a group's responses differ in the reward that the objective reads."""
    kept = [scored for scored in group.samples.values() if scored is not None]
    return any(not all_equal(rewards) for rewards in rewards_by_group(recipe, kept))
