"""How far a run is asked to stop. What is asked grows: gently, within a grace, at once.

Gently: at the next step boundary, with a checkpoint; what is no step is given up. Within a grace: the same, and what is
not done when it is over is given up too. At once: everything is. The last whole checkpoint is never touched.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from enum import IntEnum
from typing import Any, TypeVar

Result = TypeVar("Result")

STOP_COMMAND = signal.SIGUSR1  # what `logratio stop` sends to a run that has no control actor yet


class Ask(IntEnum):
    """How a run is asked to stop."""

    NOT = 0
    GENTLY = 1
    IN_TIME = 2
    AT_ONCE = 3


class StopAsked(Exception):
    """A stop was asked for where no step is under way."""


class Signals:
    """What a signal asks for, by those before it. A state machine without handlers or clock."""

    def __init__(self) -> None:
        self._heard: list[int] = []

    def heard(self, number: int) -> Ask:
        """Ctrl-C is gentle and SIGTERM is in time; whichever comes after a Ctrl-C, and Ctrl-C after SIGTERM, means at
        once. The command is always gentle."""
        if number == STOP_COMMAND:
            return Ask.GENTLY
        again = signal.SIGINT in self._heard or (number == signal.SIGINT and bool(self._heard))
        self._heard.append(number)
        if again:
            return Ask.AT_ONCE
        return Ask.IN_TIME if number == signal.SIGTERM else Ask.GENTLY


class Stopping:
    """What a run was asked so far, and who waits for it."""

    def __init__(self) -> None:
        self.ask = Ask.NOT
        self._gave_up = False
        self._asked = asyncio.Event()
        self._abandoned = asyncio.Event()

    def to(self, ask: Ask, grace: float = 0.0) -> None:
        """Ask for a stop; `grace` seconds are for IN_TIME. Less than what was asked for before changes nothing."""
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
        """Whatever is under way is given up."""
        return self._abandoned.is_set()

    @property
    def hurried(self) -> bool:
        """Nobody waits for members that are to end: some may be at work that was given up."""
        return self.abandoned or self._gave_up

    async def until_abandoned(self) -> None:
        await self._abandoned.wait()

    async def unless_asked(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What work comes to that is no step. Raises StopAsked, and then it is given up."""
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
