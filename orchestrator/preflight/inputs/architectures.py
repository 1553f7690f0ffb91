"""Can the roles compute with the models' architectures? A small random copy of each is probed before any actor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.load import RecipeError
from configs.node import STUDENT
from configs.schema import Recipe


def refuse_architectures(recipe: Recipe, folders: Mapping[Any, Path]) -> None:
    """Probe the models in `folders`, by place (model, swap). Raises RecipeError with the number and the remedy."""
    for role, place, foresight in _foreseen(recipe, folders):
        if foresight.refusal:
            raise RecipeError(f"{role}: {place} ({folders[place]}): {foresight.refusal}")


def describe_architectures(recipe: Recipe, folders: Mapping[Any, Path]) -> list[str]:
    """A line for each model that the learner or a torch scorer runs: how it will run."""
    return [f"{role}: {place}: {foresight.line}" for role, place, foresight in _foreseen(recipe, folders)]


def _foreseen(recipe: Recipe, folders: Mapping[Any, Path]) -> list[tuple[str, Any, Any]]:
    from actors.models.probing.small_copy import foresee

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
