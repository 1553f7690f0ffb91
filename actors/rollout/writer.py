"""What members that write responses have in common: a standing stream of blocks, fed by whatever is submitted.

One stream a member and not one a request: what ends at about the same time leaves in one block, whichever call asked
for it. Who opens a channel owns it; when its stream is closed, what was submitted to it ends.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from actors.member import Member
from actors.wire.records import BlockHeader, Request, join_samples
from configs.roles import Stream
from configs.schema import Sampling

Part = tuple[Any, BlockHeader]


class Writer(Member):
    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, stream: Stream, end_token_ids: Sequence[int]
    ) -> AsyncIterator[Any]:
        """Sample every request; yield payload, header, payload, header, ... as responses or their segments end."""

    async def submit(
        self, channel: str, requests: Sequence[Request], sampling: Sampling, end_token_ids: Sequence[int]
    ) -> None:
        """Begin to write; what comes of it leaves through the channel's `blocks`."""
        parts = self.generate(requests, sampling, Stream(coalesce_ms=0.0, coalesce_samples=1), end_token_ids)
        self._channel(channel).feed(parts)

    async def blocks(self, channel: str, stream: Stream) -> AsyncIterator[Any]:
        """payload, header, payload, header, ... of all that is submitted to a channel, until it is closed. Raises what
        a request raised."""
        opened = self._channel(channel)
        try:
            while True:
                for part in join_samples(await opened.next(stream)):
                    yield part
        finally:
            del self._channels[channel]
            opened.close()

    def _channel(self, name: str) -> _Channel:
        return self._channels.setdefault(name, _Channel())


class _Channel:
    """Blocks on their way out. A response stands in a block once: its next segment waits for the next block."""

    def __init__(self) -> None:
        self._waiting: list[Part] = []
        self._error: BaseException | None = None
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def feed(self, parts: AsyncIterator[Any]) -> None:
        task = asyncio.ensure_future(self._take_in(parts))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def next(self, stream: Stream) -> list[Part]:
        """What comes within the window of the first, up to the samples that a block holds."""
        await self._until(1, stream)
        with suppress(TimeoutError):
            async with asyncio.timeout(stream.coalesce_ms / 1000):
                await self._until(stream.coalesce_samples, stream)
        block = self._next(stream)
        self._waiting = [part for part in self._waiting if not any(part is taken for taken in block)]
        return block

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _take_in(self, parts: AsyncIterator[Any]) -> None:
        payload: Any = None
        async for part in parts:
            if payload is None:
                payload = part
                continue
            self._waiting.append((payload, part))
            self._arrived.set()
            payload = None

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._error = task.exception()
            self._arrived.set()

    async def _until(self, samples: int, stream: Stream) -> None:
        while sum(len(header.samples) for _, header in self._next(stream)) < samples:
            self._arrived.clear()
            if self._error is not None:
                raise self._error
            await self._arrived.wait()
            if self._error is not None:
                raise self._error

    def _next(self, stream: Stream) -> list[Part]:
        block: list[Part] = []
        uids: set[str] = set()
        for part in self._waiting:
            mine = {sample.uid for sample in part[1].samples}
            if uids & mine or len(uids) + len(mine) > max(stream.coalesce_samples, len(mine)):
                break
            block.append(part)
            uids |= mine
        return block
