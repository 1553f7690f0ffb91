"""Before any actor starts: can the programs of responses be isolated, where rewards run them?"""

from __future__ import annotations

from configs.refusal import RecipeError
from configs.reward_rules import ProgramRule
from configs.schema import Recipe
from orchestrator.preflight.cluster import joins_cluster
from rewards.sandbox.isolation import NoIsolation, isolation


def check_isolation(recipe: Recipe) -> None:
    """Raises RecipeError where a reward would run programs on this machine, and they cannot be isolated. On a cluster
    to join, each reward member finds out on its own node when it starts."""
    rules = [(i, rule) for i, rule in enumerate(recipe.reward.rules) if isinstance(rule, ProgramRule)]
    if not rules or joins_cluster(recipe):
        return
    try:
        isolation()
    except NoIsolation as reason:
        number, rule = rules[0]
        raise RecipeError(f"reward.rules.{number}.kind: {rule.kind}: {reason}") from None
