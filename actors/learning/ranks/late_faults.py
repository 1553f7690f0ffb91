"""Delays the errors of writes until no other rank waits for this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LateFaults:
    """DeepSpeed's `save_checkpoint` has collectives between and after its writes. A rank that raised at a full disk
    would miss them, meet the others' barrier with its next gradient, and hang."""

    def __init__(self) -> None:
        self._first: Exception | None = None

    def late(self, write: Callable[..., Any]) -> Callable[..., None]:
        """The same write, but its OSError or RuntimeError is kept for `settle`."""

        def attempt(*arguments: Any, **named: Any) -> None:
            try:
                write(*arguments, **named)
            except (OSError, RuntimeError) as error:  # torch raises RuntimeError at a full disk
                self._first = self._first or error

        return attempt

    def delay(self, engine: Any) -> None:
        """Delay the errors of a DeepSpeed engine's checkpoint writes, so that this rank stays in its collectives."""
        engine.checkpoint_engine.makedirs = self.late(engine.checkpoint_engine.makedirs)
        engine.checkpoint_engine.save = self.late(engine.checkpoint_engine.save)
        engine._copy_recovery_script = self.late(engine._copy_recovery_script)

    def settle(self) -> None:
        """Raise the first error since the last call, if any."""
        first, self._first = self._first, None
        if first is not None:
            raise first
