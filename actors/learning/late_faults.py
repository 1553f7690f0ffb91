"""Writes whose faults are raised later, where no other rank waits for this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LateFaults:
    """DeepSpeed's `save_checkpoint` has collectives between its writes and after them. A rank that left it at a full
    disk would meet the others' barrier with its next gradient, and hang."""

    def __init__(self) -> None:
        self._first: Exception | None = None

    def late(self, write: Callable[..., Any]) -> Callable[..., None]:
        """The same write, but what it raises for a disk is kept for `settle`."""

        def attempt(*arguments: Any, **named: Any) -> None:
            try:
                write(*arguments, **named)
            except (OSError, RuntimeError) as error:  # torch says a full disk with a RuntimeError
                self._first = self._first or error

        return attempt

    def settle(self) -> None:
        """Raises the first fault since the last call."""
        first, self._first = self._first, None
        if first is not None:
            raise first
