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
        noted, step = self.progress.evaluations["movement"], self.progress.step
        if not self.recipe.metrics.movement or any(line["step"] == step for line in noted):
            return
        async with self.roles.learner.turns.learner():
            with self.meter.clock("learn").busy():
                noted.append({"step": step, **await self.roles.learner.movement()})
