"""Scored models beside the student: which weights they serve, and the heads that the learner needs of them.

A frozen model keeps its weights. A `live` one follows the student version by version; an `ema` one follows an average
that the learner keeps. Both are pulled before anything is scored for the next step.
"""

from __future__ import annotations

from configs.schema import Recipe
from orchestrator.carriers import Carrier
from orchestrator.flow import Pools
from orchestrator.learning import LearnerGroup
from orchestrator.pool import Pool
from orchestrator.transport import ValueLost
from orchestrator.versions import Versions


class Teachers:
    """`student` are the student's versions, which live models share; averages travel by the same carrier."""

    def __init__(
        self, recipe: Recipe, pools: Pools, learner: LearnerGroup, student: Versions, carrier: Carrier
    ) -> None:
        self._recipe = recipe
        self._pools = pools
        self._learner = learner
        self._student = student
        self._moving = {model: student for model in recipe.moving("live")}
        self._moving |= {model: Versions(learner, carrier, model) for model in recipe.moving("ema")}

    def moving(self) -> list[tuple[Pool, Versions]]:
        """Pools of models that follow the student, and the versions they pull."""
        return [(self._pools.scorers[model], versions) for model, versions in self._moving.items()]

    async def start(self) -> None:
        """Give the learner the heads of frozen models, and bring the others to the student's first version."""
        for model in self._recipe.scored_models:
            if model not in self._moving:
                await self._load_head(model, 0)
        await self.follow()

    async def publish(self, number: int) -> None:
        """Make the averages of the learner's weights current too, in its turn."""
        for versions in self._moving.values():
            if versions is not self._student:
                await versions.publish(number)

    async def follow(self) -> None:
        """Bring the models that follow the student to its new version, or to its new average."""
        assert self._student.current is not None
        number = self._student.current.number
        for model, versions in self._moving.items():
            await versions.pull_all(self._pools.scorers[model])
            await self._load_head(model, number)

    async def _load_head(self, model: str, version: int) -> None:
        """Full-vocabulary targets travel as hidden states: the learner holds the head that they need."""
        if self._recipe.objective.support_of[model] != "full":
            return
        head, found = await self._pools.scorers[model].call("projection", returns=2)
        if found != version:
            raise RuntimeError(f"scorer.{model} gave the head of version {found}, version {version} was published")
        try:
            await self._learner.load_projection(model, version, version - self._recipe.max_staleness - 1, head)
        except ValueLost:  # with the node of the scorer that gave it
            await self._load_head(model, version)
