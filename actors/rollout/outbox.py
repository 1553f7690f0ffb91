"""Rows of one `generate` call on their way out, in blocks: what comes within a moment of the first leaves with it.

A response stands in a block once: its next segment waits for the next block.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from actors.wire.records import Sample
from configs.roles import Stream


class Outbox:
    def __init__(self, stream: Stream) -> None:
        self._seconds = stream.coalesce_ms / 1000
        self._most = stream.coalesce_samples
        self._rows: list[Sample] = []
        self._error: BaseException | None = None
        self._arrived = asyncio.Event()

    def put(self, row: Sample) -> None:
        self._rows.append(row)
        self._arrived.set()

    def watch(self, task: asyncio.Task[None]) -> None:
        """A task of this call has ended; `block` raises what it raised."""
        if not task.cancelled() and task.exception():
            self._error = task.exception()
            self._arrived.set()

    async def block(self, running: int) -> list[Sample]:
        """The next rows of `running` responses: at least one, at most `stream.coalesce_samples`."""
        await self._until(1)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await self._until(min(self._most, running))
        block = self._next()
        taken = {id(row) for row in block}
        self._rows = [row for row in self._rows if id(row) not in taken]
        return block

    async def _until(self, count: int) -> None:
        while len(self._next()) < count:
            self._arrived.clear()
            if self._error is None:
                await self._arrived.wait()
            if self._error is not None:
                raise self._error

    def _next(self) -> list[Sample]:
        """The oldest row of each response, as many as a block holds."""
        first: dict[str, Sample] = {}
        for row in self._rows:
            first.setdefault(row.uid, row)
        return list(first.values())[: self._most]
