"""Deadlines of calls. One timer serves all waits of a pool: a timer per call would make the event loop sort them all,
though nearly every call is answered in time.

A call that is late ends with MemberDied, and membership.py replaces the member. Who asks again depends on the call.
For scores and rewards it is `isolate` in samples/flow.py, with fewer and fewer samples, so that one that kills its
members is found. Responses that were being sampled are leased again by samples/intake.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from configs.roles.deadlines import Deadlines
from orchestrator.pools.transport import MemberDied

Answer = TypeVar("Answer")


class Overdue(Exception):
    """An answer did not come within its deadline."""


class Watch:
    """Waits with deadlines in seconds. `since` of a wait returns the time that its deadline counts from."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Timeout, tuple[float, Callable[[], float | None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def within(
        self, seconds: float, answer: Awaitable[Answer], since: Callable[[], float | None] | None = None
    ) -> Answer:
        """Await an answer for at most `seconds`, counted from this call or from the time that `since` returns (seconds
        of the monotonic clock). While `since` returns None, no deadline runs. Raises Overdue."""
        asked = time.monotonic()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._waits[limit] = seconds, since or (lambda: asked)
                self._check_in(seconds)
                try:
                    return await answer
                finally:
                    del self._waits[limit]
        except TimeoutError:
            if not limit.expired():
                raise
            raise Overdue from None

    def _check_in(self, seconds: float) -> None:
        """Set the timer to check all waits in `seconds`, unless it is due earlier."""
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if self._timer is None or when < self._timer.when():
            if self._timer:
                self._timer.cancel()
            self._timer = loop.call_at(when, self._check)

    def _check(self) -> None:
        """End the overdue waits, and set the timer for the next deadline."""
        self._timer, left = None, [self._left(*wait) for wait in self._waits.values()]
        for limit, seconds in zip(self._waits, left, strict=True):
            if seconds <= 0 and limit.when() is None:
                limit.reschedule(0.0)
        if waits := [seconds for seconds in left if seconds > 0]:
            self._check_in(min(waits))

    @staticmethod
    def _left(seconds: float, since: Callable[[], float | None]) -> float:
        began = since()
        return seconds if began is None else began + seconds - time.monotonic()


@dataclass
class CallWatch:
    """The deadlines of a role's methods. A member that misses one hangs, and counts as dead."""

    role: str
    deadlines: Deadlines
    watch: Watch = field(default_factory=Watch)

    async def in_time(
        self, method: str, answer: Awaitable[Any], since: Callable[[], float | None] | None = None
    ) -> Any:
        """Await an answer within the deadline of `method`; `since` as in Watch.within. Raises MemberDied."""
        seconds = self.deadlines.of(method)
        try:
            return await self.watch.within(seconds, answer, since)
        except Overdue:
            raise MemberDied(f"{self.role} gave no answer to {method} in {seconds:g} s (see deadlines)") from None
