"""Combinations of a recipe's keys that are refused or warned about. Each line says why and what to do.

- `biased`: the gradient is not the one that the keys promise. `objective.allow_biased` allows it by name, for studies,
  and the report says so.
- `meaningless`: keys contradict each other or have no effect. Always refused.
- `warned`: valid, and rarely intended.
"""

from __future__ import annotations

from configs.refusal import RecipeError
from configs.rules.biased import BIASED
from configs.rules.meaningless import MEANINGLESS, VLLM_MAX_TOPK
from configs.rules.warned import WARNED
from configs.schema import Recipe

__all__ = ["BIASED", "MEANINGLESS", "VLLM_MAX_TOPK", "WARNED", "biases", "refuse", "warnings"]


def refuse(recipe: Recipe) -> None:
    """Raises RecipeError for the first rule that the recipe breaks."""
    unknown = set(recipe.objective.allow_biased) - BIASED.keys()
    if unknown:
        raise RecipeError(
            f"objective.allow_biased: {sorted(unknown)} are no names of biases; allowed: {sorted(BIASED)}"
        )
    for rule in MEANINGLESS:
        if refusal := rule(recipe):
            raise RecipeError(refusal)
    for name, rule in BIASED.items():
        if name not in recipe.objective.allow_biased and (refusal := rule(recipe)):
            raise RecipeError(f"{refusal} (for a study: objective.allow_biased: [{name}])")


def biases(recipe: Recipe) -> tuple[str, ...]:
    """Names of the biased combinations that `allow_biased` lets this recipe run."""
    return tuple(name for name in recipe.objective.allow_biased if BIASED[name](recipe))


def warnings(recipe: Recipe) -> tuple[str, ...]:
    """Warnings about the recipe, a line each."""
    return tuple(refusal for rule in WARNED if (refusal := rule(recipe)))
