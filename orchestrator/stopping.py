"""How a run is asked to stop: gently, within a grace, or at once. A later request may only be more urgent.

Gently: after the step under way, with a checkpoint; work outside of a step is given up. Within a grace: the same, but
what is unfinished when the grace ends is given up too. At once: everything is given up. The last whole checkpoint
always stays.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from enum import IntEnum
from typing import Any, TypeVar

Result = TypeVar("Result")

STOP_COMMAND = signal.SIGUSR1  # sent by `logratio stop` to a run without a control actor


class Ask(IntEnum):
    """How urgently a run is asked to stop."""

    NOT = 0
    GENTLY = 1
    IN_TIME = 2
    AT_ONCE = 3


class StopAsked(Exception):
    """A stop was asked for with no step under way."""


class Signals:
    """Turns signals into requests to stop. A state machine without handlers or clock. `by_person`: whether one of them
    came from a person; SIGTERM comes from a scheduler that takes the machine back."""

    def __init__(self) -> None:
        self._heard: list[int] = []
        self.by_person = False

    def heard(self, number: int) -> Ask:
        """The request of a signal. Ctrl-C: gently; SIGTERM: in time. Either after a Ctrl-C, or Ctrl-C after SIGTERM:
        at once. `logratio stop`: gently, always."""
        self.by_person |= number != signal.SIGTERM
        if number == STOP_COMMAND:
            return Ask.GENTLY
        again = signal.SIGINT in self._heard or (number == signal.SIGINT and bool(self._heard))
        self._heard.append(number)
        if again:
            return Ask.AT_ONCE
        return Ask.IN_TIME if number == signal.SIGTERM else Ask.GENTLY


class Stopping:
    """The most urgent request so far, and the events that it sets."""

    def __init__(self) -> None:
        self.ask = Ask.NOT
        self._gave_up = False
        self._asked = asyncio.Event()
        self._abandoned = asyncio.Event()

    def to(self, ask: Ask, grace: float = 0.0) -> None:
        """Ask for a stop; `grace` in seconds is for IN_TIME. A request that is not more urgent changes nothing."""
        if ask <= self.ask:
            return
        self.ask = ask
        self._asked.set()
        if ask is Ask.AT_ONCE:
            self._abandoned.set()
        elif ask is Ask.IN_TIME:
            asyncio.get_running_loop().call_later(grace, self._abandoned.set)

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    @property
    def abandoned(self) -> bool:
        """Whether even the step under way is given up."""
        return self._abandoned.is_set()

    @property
    def hurried(self) -> bool:
        """Whether members are ended without waiting: some may be at work that was given up."""
        return self.abandoned or self._gave_up

    async def until_abandoned(self) -> None:
        await self._abandoned.wait()

    async def unless_asked(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do work outside of a step. Cancels it and raises StopAsked when a stop is asked for."""
        doing, asking = asyncio.ensure_future(work), asyncio.ensure_future(self._asked.wait())
        try:
            if not self.asked:
                await asyncio.wait([doing, asking], return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            self._gave_up = True
            raise StopAsked
        finally:
            for task in (doing, asking):
                task.cancel()
            await asyncio.gather(doing, asking, return_exceptions=True)
