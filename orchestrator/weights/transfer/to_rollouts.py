"""Rollouts get the student by a carrier of their own; everybody else by the object store."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.weights.carriers import Carrier, ObjectStore, Version
from orchestrator.weights.learner_group import LearnerGroup

ROLLOUT = "rollout"


@dataclass(frozen=True)
class ToRollouts:
    """`stored`: whether scorers follow the student, so that its versions go to the object store too. Averages always
    do. Members that only count versions, as of a dataset, get none."""

    direct: Carrier
    stored: bool
    store: ObjectStore = field(default_factory=ObjectStore)

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        if model is not None:
            return await self.store.publish(learner, number, model)
        kept = await self.store.publish(learner, number, None) if self.stored else Version(number, ((),))
        return Version(number, (await self.direct.publish(learner, number, None), *kept.parts))

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        first, *rest = version.parts
        if not isinstance(first, Version):
            return await self.store.pull(version, learner, pool, member)
        if pool.role == ROLLOUT:
            return await self.direct.pull(first, learner, pool, member)
        return await self.store.pull(Version(version.number, tuple(rest)), learner, pool, member)
