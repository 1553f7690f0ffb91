"""A time of a run's own, which passes only while everybody waits: a second is a second whatever the machine does."""

from __future__ import annotations

import asyncio
from typing import Any


class OwnTime(asyncio.SelectorEventLoop):
    """Whoever sleeps wakes at once, at the time that he meant; what a thread would do is done here."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def skip(timeout: float | None = None) -> Any:
            self._passed += timeout or 0.0
            return select(timeout and 0.0)

        selector.select = skip

    def time(self) -> float:
        return self._passed

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        done = self.create_future()
        done.set_result(func(*args))
        return done
