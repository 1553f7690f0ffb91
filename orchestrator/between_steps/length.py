"""The length curriculum at the end of each of its stages: measure, judge, then advance, roll back or stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import Recipe
from objectives.curriculum import Action, judge
from orchestrator import checkpoint
from orchestrator.between_steps.measuring import Measurements
from orchestrator.between_steps.saving import Saver
from orchestrator.progress import Progress
from orchestrator.stopping import Stopping
from orchestrator.uninterrupted import uninterrupted
from orchestrator.weights.roles import Roles


@dataclass
class LengthCurriculum:
    """`follow` brings scored models to the weights of the coming step; `end_early` ends the run after this step."""

    recipe: Recipe
    directory: Path
    progress: Progress
    roles: Roles
    measurements: Measurements
    saver: Saver
    follow: Callable[[], Awaitable[None]]
    end_early: Callable[[], None]
    notice: Callable[[str], None]

    async def begin(self) -> None:
        """Save the anchor that a first failed stage returns to."""
        if self._may_return and self.progress.anchor is None:
            await self._anchor()

    async def judge(self, stopping: Stopping) -> None:
        """Judge a stage that has ended. Raises StopAsked; a resume judges it then."""
        length, ladder = self.recipe.objective.length, self.progress.ladder
        if length is None or not ladder.due(length):
            return
        measured: Mapping[str, Any] = {}
        if length.gate:
            found = await stopping.unless_asked(self.measurements.unrecorded(length.gate.eval_length))
            measured = found.means if found else {}
        cap, entropy = ladder.cap(length), measured.get("entropy")
        ladder, action = judge(ladder, length, entropy, measured.get("truncated_fraction", 0.0))
        if action is Action.ROLLBACK:  # before anything is leased at the next cap
            await self._roll_back()
        self.progress.ladder = ladder
        seen = "" if entropy is None else f" (held-out entropy {entropy:.3f} nats)"
        self.notice(f"responses of up to {cap} tokens{seen}: {action.value}, now up to {ladder.cap(length)}")
        if action in (Action.ADVANCE, Action.FINISH) and self._may_return:
            await self._anchor()
        elif action is Action.STOP:
            self.end_early()

    @property
    def _may_return(self) -> bool:
        length = self.recipe.objective.length
        return bool(length and length.gate and length.gate.on_fail == "rollback")

    async def _anchor(self) -> None:
        self.progress.anchor = self.progress.step
        await self.saver.save()

    async def _roll_back(self) -> None:
        """Restore the weights of the anchor and publish them as a new version."""
        progress, learner = self.progress, self.roles.learner
        anchor = self.directory / "checkpoints" / f"step_{progress.anchor}"
        progress.beta = await uninterrupted(checkpoint.beta_of, anchor)
        progress.version += 1
        async with learner.turns.learner():
            await learner.restore(anchor)
            await self.roles.publish(progress.version)
        await self.roles.pull()
        await self.follow()
