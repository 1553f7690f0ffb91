"""Base of the members that write responses. Rows of all requests of a channel leave as one stream of blocks.

One stream a channel and not one a request: rows that come at about the same time leave in one block, whichever call
asked for them. The caller that opens a channel closes it by closing its stream, which ends the work submitted to it.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from actors.member import Member
from actors.wire.records import Request, Sample, pack_samples
from configs.roles.streaming import Stream
from configs.schema import Sampling


class Writer(Member):
    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}

    @abstractmethod
    def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        """Yield the rows of one response as they come: its segments in order, or the whole response."""

    async def submit(
        self, channel: str, requests: Sequence[Request], sampling: Sampling, end_token_ids: Sequence[int]
    ) -> None:
        """Begin to write; the rows leave through the channel's `blocks`."""
        opened = self._channel(channel)
        for request in requests:
            opened.feed(self.write(request, sampling, end_token_ids))

    async def blocks(self, channel: str, stream: Stream) -> AsyncIterator[Any]:
        """Yield payload, header, payload, header, ... of all rows of a channel, until the stream is closed. Raises the
        first error of a request."""
        opened = self._channel(channel)
        try:
            while True:
                for part in pack_samples(await opened.next(stream)):
                    yield part
        finally:
            del self._channels[channel]
            opened.close()

    def _channel(self, name: str) -> _Channel:
        return self._channels.setdefault(name, _Channel())


class _Channel:
    """Rows that wait for a block. A response stands in a block once: its next segment waits for the next block."""

    def __init__(self) -> None:
        self._waiting: list[Sample] = []
        self._error: BaseException | None = None
        self._changed = asyncio.Event()  # a row arrived, or a request failed
        self._tasks: set[asyncio.Task[None]] = set()

    def feed(self, rows: AsyncIterator[Sample]) -> None:
        """Take in rows as they come."""
        task = asyncio.ensure_future(self._collect(rows))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def next(self, stream: Stream) -> list[Sample]:
        """The rows of the next block: those that come within the window of the first, up to the recipe's number."""
        await self._until(1, stream)
        with suppress(TimeoutError):
            async with asyncio.timeout(stream.coalesce_ms / 1000):
                await self._until(stream.coalesce_samples, stream)
        block = self._ready(stream)
        del self._waiting[: len(block)]
        return block

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _collect(self, rows: AsyncIterator[Sample]) -> None:
        async for row in rows:
            self._waiting.append(row)
            self._changed.set()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._error = self._error or task.exception()
            self._changed.set()

    async def _until(self, rows: int, stream: Stream) -> None:
        """Wait until a block of so many rows is ready. Raises the first error of a request."""
        while len(self._ready(stream)) < rows:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    def _ready(self, stream: Stream) -> list[Sample]:
        """The first waiting rows that fit in one block."""
        block: dict[str, Sample] = {}
        for row in self._waiting[: stream.coalesce_samples]:
            if row.uid in block:
                break
            block[row.uid] = row
        return list(block.values())
