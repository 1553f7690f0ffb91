"""How a weight version travels from the learner to a member.

A carrier defines two things: what the learner does to publish a version, and what happens between learner and member
when one member pulls it. It awaits both ends of a pull, so that a carrier whose ends must meet (NCCL, CUDA IPC) fits as
well as one that passes references. Such a carrier opens a channel at the first pull of each pair of learner and member
(`learner.member` changes with a rebuild) and closes the learner's end when the member dies.

Every call has a deadline, one of the recipe's `deadlines`, by the method's name (`Deadlines.of` in
configs/roles/deadlines.py). A member's method that is new there gets `learn`, an hour: pass `deadline="load"` to
`call_member`.

A new carrier is a class, which `rollout.carrier` names; transfer/choice.py has the built-in names. The learner's end is
in actors/learning/learner.py, a member's in `load` of actors/rollout/rollout.py and actors/scoring/scorer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.weights.learner_group import LearnerGroup


@dataclass(frozen=True)
class Version:
    """A published version; only its carrier interprets `parts`."""

    number: int
    parts: tuple[Any, ...] = ()


class Carrier(Protocol):
    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        """Make the weights of the student (or of its average `model`) ready to be pulled. Called in the learner's turn.
        Raises LearnerDied."""
        ...

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        """Load a version into one member; returns the version that it then serves. A carrier that reads the learner's
        live weights takes the learner's turn. Raises MemberDied, LearnerDied, and ValueLost if the version is lost:
        the caller publishes it again, or pulls a newer one."""
        ...


class ObjectStore:
    """Buckets of tensors as values that the orchestrator owns. A version outlives the learner that made it, and a pull
    needs no learner."""

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        headers, refs = await learner.publish(model)
        return Version(number, (tuple(headers), *refs))

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        return await pool.call_member(member, "load", version.number, *version.parts)


@dataclass(frozen=True)
class Directories:
    """Directories that members read: the weights of a frozen model. `path` maps a version to its directory. `pull` also
    raises SwapRefused; the member then keeps its weights."""

    path: Callable[[int], str]

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        return Version(number, (self.path(number),))

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        return await pool.call_member(member, "swap", version.number, *version.parts)
