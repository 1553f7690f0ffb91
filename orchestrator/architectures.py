"""Can the roles compute with the models' architectures? Asked of a small random copy of each, before any actor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.load import RecipeError
from configs.node import STUDENT
from configs.schema import Recipe


def refuse_architectures(recipe: Recipe, folders: Mapping[Any, Path]) -> None:
    """`folders`: directories by place (model, swap). Raises RecipeError with the number and the remedy."""
    for role, place, foresight in _looks(recipe, folders):
        if foresight.refusal:
            raise RecipeError(f"{role}: {place} ({folders[place]}): {foresight.refusal}")


def describe_architectures(recipe: Recipe, folders: Mapping[Any, Path]) -> list[str]:
    """A line for each model that a role of ours runs: how it will be run."""
    return [f"{role}: {place}: {foresight.line}" for role, place, foresight in _looks(recipe, folders)]


def _looks(recipe: Recipe, folders: Mapping[Any, Path]) -> list[tuple[str, Any, Any]]:
    from actors.foresight import foresee

    def on_a_cpu(role: Any) -> str | None:
        return role.dtype if not role.resources.gpus else None

    found = []
    for place, folder in folders.items():
        if place.model == STUDENT and recipe.learner.engine == "deepspeed":
            ahead = foresee(folder, recipe.learner.attention, recipe.learner.packing, on_a_cpu(recipe.learner))
            found.append(("learner", place, ahead))
        if place.model in recipe.scored_models and (scorer := recipe.scorer_of(place.model)).engine == "torch":
            found.append((f"scorer.{place.model}", place, foresee(folder, scorer.attention, "auto", on_a_cpu(scorer))))
    return found
