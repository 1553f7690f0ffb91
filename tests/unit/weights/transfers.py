"""Simulated ends of both carriers from GPU to GPU. Like NCCL's, an end waits for all others of its group; like a copy
on a GPU, one that is filled while somebody reads it gives torn weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from actors.simulated.known import WEIGHTS
from actors.simulated.learner import SimulatedLearner
from actors.simulated.rollout import SimulatedRollout
from actors.transfer.layout import Layout
from actors.transfer.patience import TransferBroken
from tests.unit.weights.faults import Faults

LAYOUT = Layout(("weights",), ("float32",), ((WEIGHTS,),))
READING = 0.01  # seconds


class Meeting:
    """A group: `ends` meet, all or none."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ranks: set[int] = set()
        self._barrier: asyncio.Barrier | None = None
        self.data = b""

    async def meet(self, ends: int) -> None:
        if self._barrier is None or self._barrier.parties != ends:
            self._barrier = asyncio.Barrier(ends)
        await self._barrier.wait()


@dataclass
class Network(Faults):
    """The groups by id, the copy, and what each member received."""

    meetings: dict[str, Meeting] = field(default_factory=dict)
    taken: list[tuple[int, bytes]] = field(default_factory=list)  # (version, data)
    sizes: list[int] = field(default_factory=list)  # of the groups that were opened
    copy: bytearray = field(default_factory=bytearray)
    readers: int = 0
    torn: int = 0


NETWORK = [Network()]


@asynccontextmanager
async def limited(seconds: float) -> AsyncIterator[None]:
    """As actors/transfer/patience.py does it."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TransferBroken("the other ends did not come") from None


class Sending(SimulatedLearner):
    _group: Meeting | None = None
    _sent = 0

    def describe(self) -> Layout:
        return LAYOUT

    def mint_group(self) -> str:
        self._group = None
        return "" if self._rank else uuid4().hex

    async def open_group(self, token: str, size: int, seconds: float) -> None:
        if self._rank:
            return
        self._group = NETWORK[0].meetings.setdefault(token, Meeting(size))
        NETWORK[0].sizes.append(size)
        async with limited(seconds):
            await NETWORK[0].inject("opening learner", len(NETWORK[0].meetings))
            await self._group.meet(size)

    async def send_group(self, seconds: float) -> None:
        if self._rank:
            return
        assert self._group is not None
        self._sent += 1
        self._group.data = self._weights.tobytes()
        async with limited(seconds):
            await self._group.meet(self._group.size)
            await NETWORK[0].inject("learner", self._sent)
            await self._group.meet(self._group.size)

    def stage(self) -> tuple[Layout, dict[str, Any]] | None:
        if self._rank:
            return None
        NETWORK[0].torn += NETWORK[0].readers
        NETWORK[0].copy = bytearray(self._weights.tobytes())
        return LAYOUT, {}


class Receiving(SimulatedRollout):
    _group: Meeting | None = None
    _half = False

    async def join_group(self, token: str, first_rank: int, size: int, seconds: float) -> None:
        assert not self._half, "an engine that holds half a version was used again"
        self._group = NETWORK[0].meetings.setdefault(token, Meeting(size))
        assert self._group.size == size and first_rank not in self._group.ranks
        self._group.ranks.add(first_rank)
        await NETWORK[0].inject("joining member", len(NETWORK[0].meetings))
        async with limited(seconds):
            await self._group.meet(size)

    async def receive(self, version: int, layout: Layout, seconds: float) -> int:
        assert self._group is not None and layout == LAYOUT
        self._half = True
        async with limited(seconds):
            await self._group.meet(self._group.size)
            await NETWORK[0].inject("member", version)
            await self._group.meet(self._group.size)
        self._half = False
        NETWORK[0].taken.append((version, self._group.data))
        return await self.load(version, ())

    async def load_shared(self, version: int, layout: Layout, handle: dict[str, Any]) -> int:
        NETWORK[0].readers += 1
        try:
            data = bytes(NETWORK[0].copy)
            await asyncio.sleep(READING)
            await NETWORK[0].inject("member", version)
            NETWORK[0].taken.append((version, data))
        finally:
            NETWORK[0].readers -= 1
        return await self.load(version, ())
