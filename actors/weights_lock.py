"""Who may use a member's engine now: many that only read its weights, or one that changes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager


class Idle:
    """Counts work in progress; `wait` returns when there is none."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        self._count += 1
        self._none.clear()

    def end(self) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def wait(self) -> None:
        await self._none.wait()


class WeightsLock:
    """`shared` may be held by many at once, `exclusive` by one and by nobody beside it. Who waits for `exclusive` goes
    before those that ask for `shared` after it, so that a stream of them does not keep it waiting for ever."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()
        self._inside = Idle()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._door:
            self._inside.begin()
        try:
            yield
        finally:
            self._inside.end()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        await self.acquire_exclusive()
        try:
            yield
        finally:
            self.release()

    async def acquire_exclusive(self) -> None:
        """Hold it alone until `release`, in whatever call."""
        await self._door.acquire()
        try:
            await self._inside.wait()
        except BaseException:
            self._door.release()
            raise

    def release(self) -> None:
        self._door.release()
