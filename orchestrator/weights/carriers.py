"""How a weight version travels from the learner to a member.

A carrier answers two questions and decides nothing else: what the learner does when a version is published, and what
happens between it and one member when that member pulls. Both ends of a pull are one carrier's to await, so one whose
ends must meet (NCCL, CUDA IPC) fits as well as one that passes references: it opens a channel for each pair of learner
and member with its first pull (`learner.member` is another after a rebuild), and closes the learner's end when the
member dies. Every call has a deadline: `learn` at the learner, `load` at the member, for a swap `start`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.pools.pool import Pool, PoolMember
from orchestrator.weights.learner_group import LearnerGroup


@dataclass(frozen=True)
class Version:
    """A published version; `parts` mean something to its carrier alone."""

    number: int
    parts: tuple[Any, ...] = ()


class Carrier(Protocol):
    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        """Make the student's weights (or those of one of its averages) ready to be pulled. Called in the learner's
        turn. Raises LearnerDied."""
        ...

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        """Load a version into one member; returns the version it then serves. A carrier that reads the learner's live
        weights takes the learner's turn for it. Raises MemberDied, LearnerDied, and ValueLost where the version is
        no longer to be had: it is published again, or a newer one is pulled."""
        ...


class ObjectStore:
    """Buckets of tensors as values that the orchestrator owns: a version outlives the learner that made it and the
    member that reads it, and a pull needs no learner."""

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        headers, refs = await learner.publish(model)
        return Version(number, (tuple(headers), *refs))

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        return await pool.call_member(member, "load", version.number, *version.parts)


@dataclass(frozen=True)
class Directories:
    """Weights that lie in directories, which members read by themselves: those of a frozen model. `path` says which is
    a version's. Pulling also raises SwapRefused: the member serves on what it did."""

    path: Callable[[int], str]

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        return Version(number, (self.path(number),))

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        async with pool.apart(member):  # loading may take longer than a request may wait
            return await pool.call_member(member, "swap", version.number, *version.parts)
