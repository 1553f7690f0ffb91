"""Turns of the learner and of the engines that share its GPUs.

`async with turns.learner():` is the learner's turn; weights change, and are published, only inside of it. A learner
with GPUs of its own (`OwnGpus`) excludes no engine. On shared GPUs (`Colocated`) the engines sleep during the learner's
turn, and the learner sleeps during theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import Protocol

from actors.weights_lock import Idle
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.startup import RoleFailed
from orchestrator.pools.transport import MemberDied


class Sleeper(Protocol):
    """A learner that can be put to sleep. Both methods raise RoleFailed if it is dead."""

    async def sleep(self) -> None: ...

    async def wake(self) -> None:
        """Does nothing for a learner that is awake or not built."""
        ...


class Turns(Protocol):
    @property
    def leasing(self) -> bool:
        """Whether leases may be granted now."""
        ...

    def learner(self) -> AbstractAsyncContextManager[None]:
        """The learner's turn; one at a time."""
        ...

    def engine(self) -> AbstractAsyncContextManager[None]:
        """Entered while an engine starts or loads weights. It waits for the engines' turn, and the learner's turn waits
        for its end."""
        ...

    def unleased(self) -> AbstractContextManager[None]:
        """Nothing is leased inside of it, so that several turns of the learner find the engines idle."""
        ...


class OwnGpus:
    """The learner has GPUs of its own."""

    leasing = True

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    def learner(self) -> AbstractAsyncContextManager[None]:
        return self._lock

    def engine(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def unleased(self) -> AbstractContextManager[None]:
        return nullcontext()


class Colocated:
    """`engines` are pools in the order in which samples pass them, so that each has all its work when it drains."""

    def __init__(self, learner: Sleeper, engines: Sequence[Pool]) -> None:
        self._learner = learner
        self._engines = engines
        self.on_wake: Callable[[Pool, PoolMember], Awaitable[None]] = _nothing  # called for each engine that woke up
        self._asleep: set[PoolMember] = set()
        self._lock = asyncio.Lock()
        self._open = asyncio.Event()  # the engines' turn
        self._open.set()
        self._loading = Idle()  # engines that start or load
        self._unleased = 0

    @property
    def leasing(self) -> bool:
        return self._open.is_set() and not self._unleased

    @asynccontextmanager
    async def learner(self) -> AsyncIterator[None]:
        """If the learner dies in its turn, the engines sleep until another is built: its processes may still hold
        memory."""
        async with self._lock:
            self._open.clear()
            await self._loading.wait()
            await self._put_engines_to_sleep()
            await self._learner.wake()
            try:
                yield
            except RoleFailed:
                raise
            except BaseException:
                await self._hand_over()
                raise
            await self._hand_over()

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[None]:
        while not self._open.is_set():
            await self._open.wait()
        with self._loading.busy():
            yield

    @contextmanager
    def unleased(self) -> Iterator[None]:
        self._unleased += 1
        try:
            yield
        finally:
            self._unleased -= 1

    async def _put_engines_to_sleep(self) -> None:
        for pool in self._engines:
            await asyncio.gather(*(self._call(pool, m, "drain") for m in self._awake(pool)))
        await asyncio.gather(*(self._sleep(pool, m) for pool in self._engines for m in self._awake(pool)))

    async def _hand_over(self) -> None:
        await self._learner.sleep()
        sleeping, self._asleep = self._asleep, set()
        calls = [self._rouse(pool, m) for pool in self._engines for m in pool.members if m in sleeping]
        await asyncio.gather(*calls)
        self._open.set()

    def _awake(self, pool: Pool) -> list[PoolMember]:
        return [member for member in pool.members if member.started and member not in self._asleep]

    async def _sleep(self, pool: Pool, member: PoolMember) -> None:
        self._asleep.add(member)
        await self._call(pool, member, "sleep")

    async def _rouse(self, pool: Pool, member: PoolMember) -> None:
        with suppress(MemberDied):
            await pool.call_member(member, "wake")
            await self.on_wake(pool, member)

    async def _call(self, pool: Pool, member: PoolMember, verb: str) -> None:
        with suppress(MemberDied):  # its memory is free then, and its pool replaces it
            await pool.call_member(member, verb)


async def _nothing(pool: Pool, member: PoolMember) -> None:
    """The default of `on_wake`."""
