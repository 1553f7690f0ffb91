"""Weight versions: the learner publishes each once, every member pulls it by itself.

Pull, not broadcast: a member may come or go at any time, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from actors.wire.records import SwapRefused
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import MemberDied, ValueLost
from orchestrator.uninterrupted import uninterrupted
from orchestrator.weights.canaries import Occasion
from orchestrator.weights.canary_watch import CanaryWatch, Undecided
from orchestrator.weights.carriers import Carrier, Version
from orchestrator.weights.learner_group import LearnerDied, LearnerGroup

POLL_SECONDS = 0.2  # between checks of a member that is undecided


class Versions:
    """The current version of the student, or of its average `model`, and how members pull it. `claim` is called with a
    number before it is published; `watch` checks scorers after a load. `idle`: a load may outlast a
    request's deadline, so a member finishes its work before it."""

    def __init__(
        self,
        learner: LearnerGroup,
        carrier: Carrier,
        model: str | None = None,
        claim: Callable[[int], None] = lambda number: None,
        watch: CanaryWatch | None = None,
        idle: bool = False,
    ) -> None:
        self.current: Version | None = None
        self._learner = learner
        self._carrier = carrier
        self._model = model
        self._claim = claim
        self._watch = watch
        self._idle = idle

    async def publish(self, number: int) -> None:
        """Make the learner's weights the current version. Called in the learner's turn."""
        await uninterrupted(self._claim, number)
        self.current = await self._carrier.publish(self._learner, number, self._model)

    async def pull(self, pool: Pool, member: PoolMember) -> None:
        """Bring one member to the current version, and to a newer one that comes meanwhile.

        Raises MemberDied, and SwapRefused from the carrier. Any other error of a load counts as the member's death: its
        engine may hold half a version.
        """
        while (version := self.current) is not None and member.version != version.number:
            try:
                await self._load(version, pool, member)
            except ValueLost:
                await self._renew(version)
            except Undecided:  # out of the engines' turn, which the awaited member may need
                await asyncio.sleep(POLL_SECONDS)

    async def try_out(self, number: int, pool: Pool, member: PoolMember) -> None:
        """Bring one member to a version that is not current. Raises as `pull` does."""
        await self._load(await self._carrier.publish(self._learner, number, self._model), pool, member, Occasion.TRIAL)

    async def pull_all(self, pool: Pool) -> None:
        """Bring every serving member to the current version. One that dies is replaced and admitted with it."""
        pulls = await asyncio.gather(*(self.pull(pool, m) for m in pool.members.serving()), return_exceptions=True)
        for failure in pulls:
            if isinstance(failure, BaseException) and not isinstance(failure, MemberDied):
                raise failure

    async def _load(self, version: Version, pool: Pool, member: PoolMember, occasion: Occasion = Occasion.LOAD) -> None:
        """Load one version into one member, and check it. Raises as `pull` does, ValueLost, and Undecided."""
        # idle before its turn: what it owes may wait for a later one
        idle = pool.members.apart(member) if self._idle else nullcontext()
        # `loading`: of two pulls of one version the second finds it loaded
        async with self._learner.turns.engine(), idle, pool.turn(), member.loading:
            if member not in pool.members:  # it died in an earlier pull: do not begin a transfer
                raise MemberDied(f"{pool.role}-{member.number} is gone")
            if member.version == version.number:
                return
            with self._kept_back(pool, member):  # a wrong member must not score before its check
                try:
                    loaded = await self._carrier.pull(version, self._learner, pool, member)
                except (MemberDied, LearnerDied, ValueLost, SwapRefused):
                    raise
                except Exception as error:
                    if member.serving:
                        pool.members.replace(member, error)
                    raise MemberDied(f"loading version {version.number} failed: {error}") from error
                if self._watch:
                    await self._watch.check(pool, member, version.number, occasion)
                member.version = loaded

    def _kept_back(self, pool: Pool, member: PoolMember) -> AbstractContextManager[None]:
        return pool.members.kept_back(member) if self._watch and self._watch.watches(pool) else nullcontext()

    async def _renew(self, lost: Version) -> None:
        """Publish a version that was lost with a node again, under its number, from unchanged weights."""
        async with self._learner.turns.learner():
            if self.current is lost:
                await self.publish(lost.number)
