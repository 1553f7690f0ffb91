"""A lock on a member's weights: many readers, or one writer."""

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
    """`shared` may be held by many at once, `exclusive` by one alone. A waiting `exclusive` goes before later `shared`
    requests, so that a stream of readers cannot starve it."""

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
        """Hold the lock alone until `release`, which another call may make."""
        await self._door.acquire()
        try:
            await self._inside.wait()
        except BaseException:
            self._door.release()
            raise

    def release(self) -> None:
        self._door.release()
