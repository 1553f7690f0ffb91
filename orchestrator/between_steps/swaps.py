"""Swaps of scored models' weights from a step on: those of the recipe, and those that commands ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.load import dump_recipe, with_swaps
from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.progress import Progress
from orchestrator.uninterrupted import uninterrupted
from orchestrator.weights.teachers import SwapFailed, Teachers


class Swaps:
    """Keeps the run's current recipe, with the swaps that were asked for, and writes it to recipe.yaml."""

    def __init__(
        self, recipe: Recipe, directory: Path, progress: Progress, teachers: Teachers, notice: Callable[[str], None]
    ) -> None:
        self.recipe = recipe
        self._directory = directory
        self._progress = progress
        self._teachers = teachers
        self._notice = notice
        # (model, first step) -> the path that the recipe had there before
        self._asked_for: dict[tuple[str, int], str | None] = {}
        self._writing = asyncio.Lock()
        self._on_disk: Recipe | None = None  # the recipe that recipe.yaml was last written with

    def ask(self, paths: Mapping[str, str]) -> None:
        """Swap scored models (name -> directory) after the step under way. Swaps that were asked for earlier and are
        still to come, as after a rewind, are dropped. Raises RecipeError."""
        step, asked, recipe = self._progress.step + 2, self._asked_for, self.recipe
        recipe = with_swaps(recipe, step, paths)
        stale = {(model, first): path for (model, first), path in asked.items() if model in paths and first > step}
        for (model, first), path in stale.items():
            recipe = with_swaps(recipe, first, {model: path})
        before = {(model, step): self.recipe.models[model].swaps.get(step) for model in paths}
        self._use(recipe)
        self._asked_for = before | {swap: path for swap, path in asked.items() if swap not in stale}

    def so_far(self) -> list[dict[str, Any]]:
        """The swaps made so far: model, first step and path."""
        models, coming = self.recipe.models.items(), self._progress.step + 1
        swaps = [{"model": name, "step": s, "path": p} for name, model in models for s, p in model.swaps.items()]
        return sorted((s for s in swaps if s["step"] <= coming), key=lambda s: s["step"])

    async def write(self) -> None:
        """Write recipe.yaml if it differs from the current recipe. Raises OSError."""
        async with self._writing:
            if self._on_disk is not (recipe := self.recipe):
                text = dump_recipe(recipe)
                await uninterrupted(checkpoint.write_whole, self._directory / "recipe.yaml", text)
                self._on_disk = recipe

    async def follow(self) -> None:
        """Bring scored models to the weights of the coming step. If a swap fails that a command asked for, it is
        dropped with a notice. Raises SwapFailed for one of the recipe."""
        await self.write()  # first, so that a resume finds the same weights
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
