"""Where a recipe names the directories of its models."""

from __future__ import annotations

from typing import NamedTuple

from configs.node import STUDENT
from configs.schema import Recipe


class Place(NamedTuple):
    """Where a recipe names a directory: a model's path, or that of a swap."""

    model: str
    swap: int = 0

    def __str__(self) -> str:
        return f"models.{self.model}.swaps.{self.swap}" if self.swap else f"models.{self.model}.path"


def places(recipe: Recipe) -> list[Place]:
    """Where the recipe names models that some member serves."""
    return [Place(name, swap) for name in (STUDENT, *recipe.served_models) for swap in (0, *recipe.models[name].swaps)]
