"""Deadlines of many waits, kept by one timer: what is answered in time, as nearly everything is, costs none of its own.

A timer for each would be made and called off again, and the event loop sorts them all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Answer = TypeVar("Answer")


class Overdue(Exception):
    """An answer did not come within its deadline."""


class Watch:
    """Each wait has its deadline, seconds of the monotonic clock, and may say anew from when on it counts."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Timeout, tuple[float, Callable[[], float | None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def within(
        self, seconds: float, answer: Awaitable[Answer], since: Callable[[], float | None] | None = None
    ) -> Answer:
        """An answer, unless it takes longer than `seconds` from now on, or from what `since` says; where that says
        None, nothing is owed. Raises Overdue."""
        asked = time.monotonic()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._waits[limit] = seconds, since or (lambda: asked)
                self._look_in(seconds)
                try:
                    return await answer
                finally:
                    del self._waits[limit]
        except TimeoutError:
            if not limit.expired():
                raise
            raise Overdue from None

    def _look_in(self, seconds: float) -> None:
        """Look at the waits in so many seconds at the latest."""
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if self._timer is None or when < self._timer.when():
            if self._timer:
                self._timer.cancel()
            self._timer = loop.call_at(when, self._look)

    def _look(self) -> None:
        """End the waits that are overdue, and look again when the next may be."""
        self._timer, left = None, [self._left(*wait) for wait in self._waits.values()]
        for limit, seconds in zip(self._waits, left, strict=True):
            if seconds <= 0 and limit.when() is None:
                limit.reschedule(0.0)
        if waits := [seconds for seconds in left if seconds > 0]:
            self._look_in(min(waits))

    @staticmethod
    def _left(seconds: float, since: Callable[[], float | None]) -> float:
        began = since()
        return seconds if began is None else began + seconds - time.monotonic()
