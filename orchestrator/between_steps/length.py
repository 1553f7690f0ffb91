"""The length curriculum at the end of each of its stages: measure, judge, then advance, roll back or stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from configs.schema import Recipe
from objectives.curriculum import Action, judge
from orchestrator import checkpoint
from orchestrator.between_steps.measuring import Measurements
from orchestrator.between_steps.saving import Saver
from orchestrator.progress import Progress
from orchestrator.stopping import Stopping
from orchestrator.weights.roles import Roles


class LengthCurriculum:
    """`follow` brings scored models to the weights of the coming step; `end_early` ends the run after this step."""

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        progress: Progress,
        roles: Roles,
        measurements: Measurements,
        saver: Saver,
        follow: Callable[[], Awaitable[None]],
        end_early: Callable[[], None],
        notice: Callable[[str], None],
    ) -> None:
        self._recipe = recipe
        self._directory = directory
        self._progress = progress
        self._roles = roles
        self._measurements = measurements
        self._saver = saver
        self._follow = follow
        self._end_early = end_early
        self._notice = notice

    async def begin(self) -> None:
        """Save the anchor that a first failed stage returns to."""
        if self._may_return and self._progress.anchor is None:
            await self._anchor()

    async def judge(self, stopping: Stopping) -> None:
        """Judge a stage that has ended. Raises StopAsked; a resume judges it then."""
        length, ladder = self._recipe.objective.length, self._progress.ladder
        if length is None or not ladder.due(length):
            return
        measured: Mapping[str, Any] = {}
        if length.gate:
            found = await stopping.unless_asked(self._measurements.unrecorded(length.gate.eval_length))
            measured = found.means if found else {}
        cap, entropy = ladder.cap(length), measured.get("entropy")
        ladder, action = judge(ladder, length, entropy, measured.get("truncated_fraction", 0.0))
        if action is Action.ROLLBACK:  # before anything is leased at the next cap
            await self._roll_back()
        self._progress.ladder = ladder
        seen = "" if entropy is None else f" (held-out entropy {entropy:.3f} nats)"
        self._notice(f"responses of up to {cap} tokens{seen}: {action.value}, now up to {ladder.cap(length)}")
        if action in (Action.ADVANCE, Action.FINISH) and self._may_return:
            await self._anchor()
        elif action is Action.STOP:
            self._end_early()

    @property
    def _may_return(self) -> bool:
        length = self._recipe.objective.length
        return bool(length and length.gate and length.gate.on_fail == "rollback")

    async def _anchor(self) -> None:
        self._progress.anchor = self._progress.step
        await self._saver.save()

    async def _roll_back(self) -> None:
        """Restore the weights of the anchor and publish them as a new version."""
        progress, learner = self._progress, self._roles.learner
        anchor = self._directory / "checkpoints" / f"step_{progress.anchor}"
        progress.beta = await asyncio.to_thread(checkpoint.beta_of, anchor)
        progress.version += 1
        async with learner.turns.learner():
            await learner.restore(anchor)
            await self._roles.publish(progress.version)
        await self._roles.pull()
        await self._follow()
