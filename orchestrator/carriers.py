"""How a weight version travels from the learner to a member.

A carrier answers two questions and decides nothing else: what the learner does when a version is published, and what
happens between it and one member when that member pulls. Both sides of a pull are awaited together, so a carrier whose
ends must meet (NCCL, CUDA IPC) fits as well as one that passes references. A call has the deadline of the member that
is called: the learner's `learn`, or `load`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.learning import LearnerGroup
from orchestrator.pool import Pool, PoolMember


@dataclass(frozen=True)
class Version:
    """A published version; `parts` mean something to its carrier alone."""

    number: int
    parts: tuple[Any, ...] = ()


class Carrier(Protocol):
    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        """Make the student's weights (or those of one of its averages) ready to be pulled. Raises LearnerDied."""
        ...

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        """Load a version into one member; returns the version it then serves. Raises MemberDied, ValueLost."""
        ...


class ObjectStore:
    """Buckets of tensors as values that the orchestrator owns: a version outlives the learner that made it and the
    member that reads it, and a pull needs no learner."""

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        headers, refs = await learner.publish(model)
        return Version(number, (tuple(headers), *refs))

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        return await pool.call_member(member, "load", version.number, *version.parts)
