"""Checkpoints of a run: when one is due, and how it is written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.between_steps.observer import Observer
from orchestrator.evaluation.best import best_so_far
from orchestrator.progress import Faults, Progress
from orchestrator.uninterrupted import uninterrupted
from orchestrator.weights.learner_group import LearnerGroup


class Saver:
    """`faults` counts the replaced members and rebuilt learners so far."""

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
        self._due = False  # a checkpoint waits for the next step that moves the weights
        self._saved: object = None  # Progress.at_stake at the newest checkpoint
        self.saved_at: float | None = None  # unix seconds of the newest checkpoint of this process

    def rewound(self, to_checkpoint: bool) -> None:
        """The run was rewound to its newest checkpoint, or to its beginning."""
        self._due, self._saved = False, self._progress.at_stake() if to_checkpoint else None

    @property
    def unsaved(self) -> bool:
        """Whether a stop would lose something."""
        return self._progress.at_stake() != self._saved

    async def save(self) -> None:
        """Write a checkpoint. Raises OSError or RuntimeError if that fails; the one before stays."""
        self._observer.phase(f"saving step {self._progress.step}")
        folder = await uninterrupted(checkpoint.partial_folder, self._directory, self._progress.step)
        state = self._progress.to_state(self._faults(), self._recipe.learner.ranks)
        at_stake = self._progress.at_stake()
        keep, pinned = self._recipe.checkpoint.keep, self._pinned()
        try:
            async with self._learner.turns.learner():
                await self._learner.save(folder)
            await uninterrupted(checkpoint.seal, self._directory, folder, state, keep, pinned)
            self._saved, self.saved_at = at_stake, time.time()
        except BaseException:
            await uninterrupted(shutil.rmtree, folder, ignore_errors=True)  # frees a full disk
            raise

    async def save_if_due(self) -> None:
        """Save after a step if one is due, or if it is the best so far. A failure is noticed, and the run goes on."""
        step, every = self._progress.step, self._recipe.saved_every
        self._due |= bool(every) and step % every == 0
        if step not in self._bests() and not (self._due and self._progress.skips.moved(step)):
            return
        self._due = False
        try:
            await self.save()
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            self._observer.notice(f"step {step} was not saved, the last checkpoint stays: {error}")

    def _pinned(self) -> set[int]:
        """Steps whose checkpoints stay, however many are newer."""
        anchor = self._progress.anchor
        return self._bests() | (set() if anchor is None else {anchor})

    def _bests(self) -> set[int]:
        """The step of the best checkpoint, if a metric for it is named and known."""
        progress = self._progress
        best = best_so_far(self._recipe.checkpoint.best, progress.evaluations, progress.step)
        return {best["step"]} if best else set()
