"""How far the weights have moved, beside each evaluation: so that what a run gained is read against what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema import Recipe
from orchestrator.pools.telemetry import Meter
from orchestrator.progress import Progress
from orchestrator.weights.roles import Roles


@dataclass
class Movement:
    """Notes it in the progress, once a step, where `metrics.movement` asks for it."""

    recipe: Recipe
    progress: Progress
    roles: Roles
    meter: Meter

    async def note(self) -> None:
        """The learner compares its weights, in its turn. Raises LearnerDied."""
        if not self.recipe.metrics.movement or self._noted():
            return
        async with self.roles.learner.turns.learner():
            if self._noted():  # by another evaluation, meanwhile
                return
            with self.meter.clock("learn").busy():
                moved = await self.roles.learner.movement()
            self.progress.evaluations["movement"].append({"step": self.progress.step, **moved})

    def _noted(self) -> bool:
        return any(line["step"] == self.progress.step for line in self.progress.evaluations["movement"])
