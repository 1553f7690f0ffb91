"""Whose turn it is: the learner's, or that of the engines which share its GPUs.

`async with turns.learner():` is the learner's turn. Weights move, and are published, only in it. Where the learner has
GPUs of its own (`Apart`) nobody else minds. Where it shares them (`Colocated`), engines sleep meanwhile, and it sleeps
in theirs.
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

from orchestrator.pools.pool import Pool, PoolMember, RoleFailed
from orchestrator.pools.transport import MemberDied


class Sleeper(Protocol):
    """A learner that can be put to sleep. Both raise RoleFailed when it is dead."""

    async def sleep(self) -> None: ...

    async def wake(self) -> None:
        """Nothing for one that does not sleep, or that is still to be built."""
        ...


class Turns(Protocol):
    @property
    def leasing(self) -> bool:
        """Whether responses may be asked for now."""
        ...

    def learner(self) -> AbstractAsyncContextManager[None]:
        """The learner's turn; one at a time."""
        ...

    def engine(self) -> AbstractAsyncContextManager[None]:
        """Held while an engine starts or loads weights: the learner's turn begins when nobody holds it, and who asks
        for it then waits."""
        ...

    def unleased(self) -> AbstractContextManager[None]:
        """Nothing is leased meanwhile, so that several turns of the learner find the engines idle."""
        ...


class Apart:
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
    """`engines` are pools in the order of the flow, so that each has all its work when it is drained."""

    def __init__(self, learner: Sleeper, engines: Sequence[Pool]) -> None:
        self._learner = learner
        self._engines = engines
        self.woken: Callable[[Pool, PoolMember], Awaitable[None]] = _nothing  # told of an engine that is awake again
        self._asleep: set[PoolMember] = set()
        self._lock = asyncio.Lock()
        self._open = asyncio.Event()  # the engines' turn
        self._open.set()
        self._unheld = asyncio.Event()
        self._unheld.set()
        self._holders = 0
        self._unleased = 0

    @property
    def leasing(self) -> bool:
        return self._open.is_set() and not self._unleased

    @asynccontextmanager
    async def learner(self) -> AsyncIterator[None]:
        """If the learner dies in its turn, the engines sleep on until another is built: what is left of it may still
        hold memory."""
        async with self._lock:
            self._open.clear()
            await self._unheld.wait()
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
        self._holders += 1
        self._unheld.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._unheld.set()

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
            await self.woken(pool, member)

    async def _call(self, pool: Pool, member: PoolMember, verb: str) -> None:
        with suppress(MemberDied):  # which gives its memory back too; its pool replaces it
            await pool.call_member(member, verb)


async def _nothing(pool: Pool, member: PoolMember) -> None:
    """Nobody looks at who is awake again."""
