"""One member of a pool: its state, and the end of its log."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(eq=False)
class PoolMember:
    """A member's state. `load` counts unanswered work in the pool's units: tokens for scorers, responses otherwise.
    `place` is the smallest number that no other member of the role had when the first member in its line of
    replacements came; `restarts` counts the deaths in that line.
    `kind`: which of the role's kinds it is of; "": the role's own."""

    number: int
    kind: str = ""
    restarts: int = 0
    place: int = -1
    actors: Sequence[Any] = ()
    node: str | None = None  # of the lead, if known
    serving: bool = False
    version: int = -1
    load: int = 0
    started: bool = False  # its engine is up
    asleep: bool = False  # while it is the turn of another scorer on its GPU
    leaving: bool = False
    apart: int = 0  # how many callers keep new work from it; it still serves
    joining: asyncio.Task[Any] | None = None  # set while it starts
    log: Path | None = None
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)  # one weight load at a time
    _owed: dict[object, float] = field(default_factory=dict)  # when each unanswered call came, oldest first
    _calls: dict[object, float] = field(default_factory=dict)  # when each call in flight was made, oldest first
    _last_answer: float = 0.0  # when the oldest call in flight was last answered; seconds, monotonic clock

    @property
    def lead(self) -> Any:
        return self.actors[0]

    @property
    def waits_since(self) -> float | None:
        """When the oldest unanswered call came to this member, seconds of the monotonic clock; None without one."""
        return next(iter(self._owed.values()), None)

    @contextmanager
    def owing(self) -> Iterator[None]:
        """Mark a call as unanswered, also while it waits for this member's turn."""
        call = object()
        self._owed[call] = time.monotonic()
        try:
            yield
        finally:
            del self._owed[call]

    @contextmanager
    def in_flight(self) -> Iterator[Callable[[], float]]:
        """Mark a call as in flight. Yields a function that returns the time its deadline counts from: when this call
        was made or, if later, when the calls before it were answered. Seconds of the monotonic clock."""
        call, made = object(), time.monotonic()
        self._calls[call] = made
        try:
            yield lambda: max(made, self._last_answer)
        finally:
            if next(iter(self._calls)) is call:
                self._last_answer = time.monotonic()
            del self._calls[call]


async def quoted(log: Path | None) -> str:
    """The last lines of a member's log, formatted to follow an error; empty without a log."""
    return await asyncio.to_thread(quote_log, log) if log else ""


def quote_log(log: Path, lines: int = 20) -> str:
    """The last lines of a log, read from its last 16 KiB. With several ranks, those of the first rank's log."""
    files = [log] if log.exists() else sorted(log.parent.glob(f"{log.stem}.rank*.log"))
    return "".join(
        f"\n  --- last lines of {file} ---\n  " + "\n  ".join(_tail(file).splitlines()[-lines:]) for file in files[:1]
    )


def _tail(file: Path, size: int = 16 * 2**10) -> str:
    with file.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - size))
        return log.read().decode(errors="replace")
