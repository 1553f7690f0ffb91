"""Other weights for scored models from a step on: those that the recipe names, and those that commands ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.load import dump_recipe, with_swaps
from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.progress import Progress
from orchestrator.weights.teachers import SwapFailed, Teachers


class Swaps:
    """Keeps the recipe that the run goes on with, which has what was asked for, and recipe.yaml equal to it."""

    def __init__(
        self, recipe: Recipe, directory: Path, progress: Progress, teachers: Teachers, notice: Callable[[str], None]
    ) -> None:
        self.recipe = recipe
        self._directory = directory
        self._progress = progress
        self._teachers = teachers
        self._notice = notice
        # by model and first step: what the recipe had there before it was asked for
        self._asked_for: dict[tuple[str, int], str | None] = {}
        self._writing = asyncio.Lock()
        self._on_disk: Recipe | None = None  # what recipe.yaml says, as far as this process knows

    def ask(self, paths: Mapping[str, str]) -> None:
        """Give scored models other directories, by name, once the step under way is done. What was asked for before and
        is still to come, as after a rewind, comes no more. Raises RecipeError."""
        step, asked, recipe = self._progress.step + 2, self._asked_for, self.recipe
        recipe = with_swaps(recipe, step, paths)
        stale = {(model, first): path for (model, first), path in asked.items() if model in paths and first > step}
        for (model, first), path in stale.items():
            recipe = with_swaps(recipe, first, {model: path})
        before = {(model, step): self.recipe.models[model].swaps.get(step) for model in paths}
        self._use(recipe)
        self._asked_for = before | {swap: path for swap, path in asked.items() if swap not in stale}

    def so_far(self) -> list[dict[str, Any]]:
        """What was swapped in: model, the step from which on, and its path."""
        models, coming = self.recipe.models.items(), self._progress.step + 1
        swaps = [{"model": name, "step": s, "path": p} for name, model in models for s, p in model.swaps.items()]
        return sorted((s for s in swaps if s["step"] <= coming), key=lambda s: s["step"])

    async def written(self) -> None:
        """Return when the recipe that the run goes on with is on the disk. Raises OSError."""
        async with self._writing:
            if self._on_disk is not (recipe := self.recipe):
                text = dump_recipe(recipe)
                await asyncio.to_thread(checkpoint.write_whole, self._directory / "recipe.yaml", text)
                self._on_disk = recipe

    async def follow(self) -> None:
        """Bring scored models to what the coming step is to have. What a command asked for may come to nothing; what
        the recipe says may not. Raises SwapFailed."""
        await self.written()  # first: a resume must not find other weights than these
        try:
            await self._teachers.follow(self._progress.step + 1)
        except SwapFailed as failure:
            if failure.swap not in self._asked_for:
                raise
            self._notice(f"the swap came to nothing: {failure}")
            (model, step), before = failure.swap, self._asked_for.pop(failure.swap)
            self._use(with_swaps(self.recipe, step, {model: before}))
            await self.follow()

    def _use(self, recipe: Recipe) -> None:
        self.recipe = self._teachers.recipe = recipe
