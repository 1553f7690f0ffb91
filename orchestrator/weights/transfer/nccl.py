"""The carrier `nccl`: the learner's rank 0 broadcasts to all rollouts that wait for a version.

Members that pull at the same time are one group and get the version by one broadcast. The group stays while the same
members come; a late joiner, or the replacement of one that died, makes the next one another group. A transfer reads
the learner's live weights, in its turn: who comes for an older version gets the newest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import ValueLost
from orchestrator.weights.carriers import Version
from orchestrator.weights.learner_group import LearnerDied, LearnerGroup
from orchestrator.weights.transfer.groups import Group, failures, taking_part, unopened, with_senders_error


class Broadcast:
    """`patience`: seconds that an end of a transfer waits for the others. `workers`: GPUs of one member."""

    def __init__(self, patience: float, workers: int) -> None:
        self._patience = patience
        self._workers = workers
        self._live: tuple[PoolMember, int, Any] | None = None  # the learner, its version, and what that consists of
        self._group: Group | None = None
        self._line: dict[PoolMember, asyncio.Future[int]] = {}  # members that wait for a transfer
        self._leading = asyncio.Lock()  # one transfer at a time, led by one of the pulls that wait for it

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        layout = (await learner.take_part("describe"))[0]
        self._live = learner.member, number, layout
        return Version(number)

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        answer = self._line[member] = asyncio.get_running_loop().create_future()
        try:
            async with self._leading:
                if not answer.done():
                    await asyncio.sleep(0)  # pulls that begin together go together
                    async with learner.turns.learner():
                        await self._serve_line(learner, pool)
            return answer.result()
        finally:
            self._line.pop(member, None)
            answer.cancel()

    async def _serve_line(self, learner: LearnerGroup, pool: Pool) -> None:
        """Bring all members in line to the live version. Raises LearnerDied, and ValueLost before a new learner has
        published."""
        line = {member: waiting for member, waiting in self._line.items() if not waiting.done()}
        members, gone = taking_part(line, pool.members)
        try:
            answers = {**gone, **(await self._carry(learner, pool, members) if members else {})}
        except asyncio.CancelledError:  # what becomes of the members' ends nobody would know
            self._group = None
            _settle(line, dict.fromkeys(line, RuntimeError("the transfer was given up")))
            raise
        _settle(line, answers)

    async def _carry(self, learner: LearnerGroup, pool: Pool, members: Sequence[PoolMember]) -> Mapping[Any, Any]:
        """Each member's answer, or its error. Raises as `_serve_line` does."""
        if self._live is None or self._live[0] is not learner.member:
            raise ValueLost("the learner was built anew and has published nothing yet")
        sender, number, layout = self._live
        if self._group is None or not self._group.serves(sender, members):
            self._group = None
            group = Group(sender, tuple(members), self._workers)
            if failed := await self._open(group, learner, pool, members):
                return failed
            self._group = group
        sending = learner.take_part("send_group", self._patience)
        ends = {m: pool.call_member(m, "receive", number, layout, self._patience) for m in members}
        answers, error = await both_ends(sending, ends)
        if error or failures(answers):
            self._group = None
        return with_senders_error(answers, error)

    async def _open(
        self, group: Group, learner: LearnerGroup, pool: Pool, members: Sequence[PoolMember]
    ) -> Mapping[Any, Any]:
        """Have all ends meet. Returns every member's error if they did not."""
        token = (await learner.take_part("mint_group"))[0]
        opening = learner.take_part("open_group", token, group.size, self._patience)
        joins = {
            m: pool.call_member(m, "join_group", token, group.first_rank(m), group.size, self._patience)
            for m in members
        }
        return unopened(*await both_ends(opening, joins))


async def both_ends(
    sending: Awaitable[Any], receiving: Mapping[PoolMember, Awaitable[Any]]
) -> tuple[dict[PoolMember, Any], Exception | None]:
    """Await the learner's end and the members'. Returns each member's answer or error, and the learner's error. Raises
    LearnerDied."""
    first, *rest = await asyncio.gather(sending, *receiving.values(), return_exceptions=True)
    if isinstance(first, LearnerDied):
        raise first
    return dict(zip(receiving, rest, strict=True)), first if isinstance(first, Exception) else None


def _settle(line: Mapping[PoolMember, asyncio.Future[int]], answers: Mapping[Any, Any]) -> None:
    for member, waiting in line.items():
        answer = answers[member]
        if waiting.done():  # its pull was cancelled
            continue
        if isinstance(answer, Exception):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)
