"""How many CPU seconds of a driver go into telling of its run, by part. Thread clocks: other load does not count."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from orchestrator.surface import driver, reporting

TASKS = Path("/proc/self/task")


class Timed:
    """Awaits `inner`, and counts what its own turns take of this thread's CPU."""

    def __init__(self, inner: Any, accounts: Accounts) -> None:
        self._inner = inner
        self._accounts = accounts

    def __await__(self) -> Generator[Any, None, Any]:
        turns, error = self._inner.__await__(), None
        while True:
            began = time.thread_time()
            try:
                waits_for = turns.send(None) if error is None else turns.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                self._accounts.loop += time.thread_time() - began
            try:
                yield waits_for
                error = None
            except BaseException as thrown:  # a cancelled task: its inner part must see it
                error = thrown


class Accounts:
    """CPU seconds so far. `loop`: status and its way to the control actor, on the event loop; `files`: status.json."""

    def __init__(self) -> None:
        self.loop = 0.0
        self.files = 0.0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside of it, the driver's reports are counted."""
        report, replace = driver._report, reporting._replace

        async def timed_report(*arguments: Any) -> None:
            await Timed(report(*arguments), self)

        def timed_replace(*arguments: Any) -> None:
            began = time.thread_time()
            replace(*arguments)
            self.files += time.thread_time() - began

        with (
            mock.patch.object(driver, "_report", timed_report),
            mock.patch.object(reporting, "_replace", timed_replace),
        ):
            yield

    def parts(self) -> dict[str, float]:
        """By part. `trackers`: their thread; `native`: threads that are not Python's; `driver`: the whole process."""
        threads = {thread.native_id: thread for thread in threading.enumerate()}
        trackers = sum(_seconds(number) for number, thread in threads.items() if thread.name == "trackers")
        native = sum(_seconds(int(task.name)) for task in TASKS.iterdir() if int(task.name) not in threads)
        parts = {"loop": self.loop, "files": self.files, "trackers": trackers, "native": native}
        return parts | {"driver": time.process_time()}


def _seconds(task: int | None) -> float:
    """CPU seconds of a thread; 0 of one that has just ended."""
    try:
        return int((TASKS / str(task) / "schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return 0.0
