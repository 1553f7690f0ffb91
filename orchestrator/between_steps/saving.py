"""Checkpoints of a run: when one is due, and how it is written."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.between_steps.observer import Observer
from orchestrator.progress import Faults, Progress
from orchestrator.weights.learner_group import LearnerGroup


class Saver:
    """`faults` says what the run has outlived."""

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        progress: Progress,
        learner: LearnerGroup,
        faults: Callable[[], Faults],
        observer: Observer,
    ) -> None:
        self._recipe = recipe
        self._directory = directory
        self._progress = progress
        self._learner = learner
        self._faults = faults
        self._observer = observer
        self._due = False  # a checkpoint waits for a step that moves the weights
        self._saved: object = None  # what was at stake when the newest was written

    def rewound(self, to_checkpoint: bool) -> None:
        """The run stands where its newest checkpoint left it, or at its beginning."""
        self._due, self._saved = False, self._progress.at_stake() if to_checkpoint else None

    @property
    def unsaved(self) -> bool:
        """Whether a stop would lose something."""
        return self._progress.at_stake() != self._saved

    async def save(self) -> None:
        """Raises OSError or RuntimeError where it cannot be written; the one before stays."""
        self._observer.phase(f"saving step {self._progress.step}")
        folder = await asyncio.to_thread(checkpoint.partial_folder, self._directory, self._progress.step)
        state = self._progress.to_state(self._faults(), self._recipe.learner.ranks)
        at_stake, sealing = self._progress.at_stake(), None
        keep, anchor = self._recipe.checkpoint.keep, self._progress.anchor
        try:
            async with self._learner.turns.learner():
                await self._learner.save(folder)
            sealing = asyncio.ensure_future(
                asyncio.to_thread(checkpoint.seal, self._directory, folder, state, keep, anchor)
            )
            await asyncio.shield(sealing)
            self._saved = at_stake
        except BaseException:
            if sealing and not sealing.done():  # given up, and its thread goes on: it may be whole yet
                raise
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)  # a full disk gets its room back
            raise

    async def save_if_due(self) -> None:
        """After a step on the way. A run can do without this checkpoint: what keeps it from being written is said."""
        step, every = self._progress.step, self._recipe.saved_every
        self._due |= bool(every) and step % every == 0
        if not self._due or not self._progress.skips.moved(step):
            return
        self._due = False
        try:
            await self.save()
        except (OSError, RuntimeError) as error:  # torch says a full disk with a RuntimeError
            self._observer.notice(f"step {step} was not saved, the last checkpoint stays: {error}")
