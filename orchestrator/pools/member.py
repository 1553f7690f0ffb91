"""What a pool knows of one of its members."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(eq=False)
class PoolMember:
    """`load` is what was routed to it and has not come back, in the caller's units (tokens, responses). `restarts` are
    the deaths in its place before it, and `place` is the number of the first member there."""

    number: int
    restarts: int = 0
    place: int = -1
    actors: Sequence[Any] = ()
    node: str | None = None  # where its head lives, if that is known
    serving: bool = False
    version: int = -1
    load: int = 0
    started: bool = False  # its engine is up
    leaving: bool = False
    apart: int = 0  # by how many it is kept back: it serves, and is given nothing for a while
    joining: asyncio.Task[Any] | None = None  # the work of bringing it up, while it lasts
    log: Path | None = None
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)  # one load at a time
    _calls: dict[object, None] = field(default_factory=dict)  # not answered yet, oldest first
    _next_began: float = 0.0  # when the oldest of them became that

    @property
    def lead(self) -> Any:
        return self.actors[0]

    @contextmanager
    def asked(self) -> Iterator[Callable[[], float]]:
        """While a call is made. Gives from when on it is owed an answer: when it was made, or when the last of those
        that were made before it was answered, as far as they are by now. Seconds of the monotonic clock."""
        call, made = object(), time.monotonic()
        self._calls[call] = None
        try:
            yield lambda: max(made, self._next_began)
        finally:
            if next(iter(self._calls)) is call:
                self._next_began = time.monotonic()
            del self._calls[call]
