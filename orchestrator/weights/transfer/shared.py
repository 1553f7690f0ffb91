"""The carrier `ipc`: members read a copy on the learner's GPU, on the node that they share with it.

The copy outlives the learner's turn, so a pull needs nothing of the learner but that it lives. There is one copy: it is
filled anew when nobody reads it, and who comes for an older version pulls the newest.
"""

from __future__ import annotations

from actors.weights_lock import Idle
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import ValueLost
from orchestrator.weights.carriers import Version
from orchestrator.weights.learner_group import LearnerGroup


class NotOneNode(Exception):
    """A member is on another node than the learner's rank 0."""


class Shared:
    def __init__(self) -> None:
        self._copied: tuple[PoolMember, int] | None = None  # whose weights, and of which version, the copy holds
        self._reading = Idle()

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        self._copied = None
        await self._reading.wait()  # at most their deadline: a member that hangs is replaced
        layout, handle = (await learner.take_part("stage"))[0]
        self._copied = learner.member, number
        return Version(number, (layout, handle))

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        if self._copied != (learner.member, version.number):
            raise ValueLost(f"the copy no longer holds version {version.number}")
        check_node(learner.node, pool.transport.node(member.lead))
        with self._reading.busy():
            return await pool.call_member(member, "load_shared", version.number, *version.parts)


def check_node(learner: str | None, member: str | None) -> None:
    """Raises NotOneNode if both nodes are known and differ."""
    if learner is not None and member is not None and learner != member:
        raise NotOneNode(
            f"rollout.carrier: 'ipc' needs one node, the learner is on {learner} and this member on {member}; give "
            "both roles one node by resources.labels, or use nccl"
        )
