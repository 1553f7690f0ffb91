"""A time of a run's own, which passes only while everybody waits: a second is a second whatever the machine does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

Result = TypeVar("Result")


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


def in_own_time(story: Coroutine[Any, Any, Result], hours: float = 24.0) -> Result:
    """What a story comes to, in a time of its own: who hangs is found at once, however long its deadline."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=OwnTime) as runner:
        patch.setattr(time, "monotonic", runner.get_loop().time)
        return runner.run(asyncio.wait_for(story, hours * 3600))
