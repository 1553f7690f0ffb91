"""Members that take their time, and pools of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from actors.member import Member
from configs.roles.sizes import Resources
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import GangSpec, LocalTransport
from orchestrator.pools.waiting import WaitingLine


class Worker(Member):
    """Answers with its own number, after its delay in seconds."""

    def __init__(self, number: int, delays: dict[int, float]) -> None:
        self._number = number
        self._delays = delays
        self.asked = 0

    async def start(self) -> None: ...

    async def work(self) -> int:
        self.asked += 1
        await asyncio.sleep(self._delays.get(self._number, 0.0))
        return self._number

    async def blocks(self) -> AsyncIterator[Any]:
        """Never yields."""
        await asyncio.Event().wait()
        yield


def pool(delays: dict[int, float], **more: Any) -> Pool:
    return Pool(
        "worker",
        LocalTransport(),
        lambda number: GangSpec("worker", Worker, ((number, delays),), Resources()),
        **more,
    )


class Queue(Worker):
    """Works through calls one by one, a second each. Members with a delay never answer their first call."""

    async def start(self) -> None:
        self._turn = asyncio.Lock()
        self.taken: list[Any] = []

    async def work(self, name: str = "") -> int:
        self.asked += 1
        if self.asked == 1 and self._number in self._delays:
            await asyncio.Event().wait()
        async with self._turn:
            await asyncio.sleep(1.0)
            self.taken.append(name)
        return self._number


def queues(bound: int | None, lost: Sequence[int] = (), **more: Any) -> Pool:
    spec = partial(GangSpec, "queue", Queue, resources=Resources())
    found = pool({}, line=WaitingLine(bound), **more)
    found.startup.spec = lambda number: spec(((number, dict.fromkeys(lost, 0.0)),))
    return found
