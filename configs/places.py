"""The keys of a recipe that name model directories."""

from __future__ import annotations

from typing import NamedTuple

from configs.node import STUDENT
from configs.schema import Recipe


class Place(NamedTuple):
    """The key of a model directory: a model's path, or that of a swap."""

    model: str
    swap: int = 0

    def __str__(self) -> str:
        return f"models.{self.model}.swaps.{self.swap}" if self.swap else f"models.{self.model}.path"


def places(recipe: Recipe) -> list[Place]:
    """The keys of all directories that some member reads."""
    return [Place(name, swap) for name in (STUDENT, *recipe.served_models) for swap in (0, *recipe.models[name].swaps)]
