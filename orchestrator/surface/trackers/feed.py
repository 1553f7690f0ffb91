"""Hands a run's numbers to its trackers, from a thread of its own: their files and networks hold up nobody."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from configs.refusal import reason

LONGEST = 1000  # numbers that wait for a slow tracker; the oldest are kept, newer ones are lost
LAST_SECONDS = 20.0  # for what still waits at the end of a run


class Tracker(Protocol):
    """Gets a run's numbers. Its methods are called by one thread, one after the other."""

    name: str

    def step(self, line: Mapping[str, Any]) -> None:
        """A step is done; its line of metrics.jsonl."""
        ...

    def evaluated(self, step: int, result: Mapping[str, Any]) -> None:
        """An evaluation after `step` steps is done."""
        ...

    def status(self, status: Mapping[str, Any]) -> None:
        """How the run is, every few seconds; as status.json."""
        ...

    def close(self, exit_code: int | None) -> None:
        """The run has ended."""
        ...


class Feed:
    """`trackers` are made in the thread, by functions: a library may connect as it starts. `notice` is called from the
    thread, when one fails."""

    def __init__(self, trackers: Sequence[Callable[[], Tracker]], notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._waiting: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(LONGEST)
        self._lost = False
        self._thread = threading.Thread(target=self._work, args=(trackers,), name="trackers", daemon=True)
        self._thread.start()

    def step(self, line: Mapping[str, Any]) -> None:
        self._put("step", line)

    def evaluated(self, step: int, result: Mapping[str, Any]) -> None:
        self._put("evaluated", step, result)

    def status(self, status: Mapping[str, Any]) -> None:
        self._put("status", status)

    def close(self, exit_code: int | None) -> None:
        """Let the trackers end, for up to LAST_SECONDS. Blocks: call it off the event loop."""
        self._put("close", exit_code)
        with suppress(queue.Full):
            self._waiting.put(None, timeout=LAST_SECONDS)
            self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            self._notice(
                f"trackers: a slow one has not taken all numbers {LAST_SECONDS:.0f} s after the end; they are lost"
            )

    def _put(self, method: str, *arguments: Any) -> None:
        try:
            self._waiting.put_nowait((method, arguments))
        except queue.Full:
            if not self._lost:
                self._lost = True
                self._notice(f"trackers: {LONGEST} numbers wait for a slow one; later ones are lost to it")

    def _work(self, makers: Sequence[Callable[[], Tracker]]) -> None:
        trackers = [made for maker in makers if (made := self._made(maker))]
        while (item := self._waiting.get()) is not None:
            trackers = [tracker for tracker in trackers if self._told(tracker, *item)]

    def _made(self, maker: Callable[[], Tracker]) -> Tracker | None:
        try:
            return maker()
        except Exception as error:  # a library of others, perhaps over a network: anything may come
            self._notice(f"a tracker does not start: {reason(error)}; the run goes on without it")
            return None

    def _told(self, tracker: Tracker, method: str, arguments: tuple[Any, ...]) -> bool:
        try:
            getattr(tracker, method)(*arguments)
            return True
        except Exception as error:
            self._notice(f"tracker {tracker.name}: {reason(error)}; it gets no more numbers of this run")
            return False


def numbers(line: Mapping[str, Any], skipped: Sequence[str] = ("time", "step")) -> dict[str, float]:
    """The finite numbers of a line, by name."""
    found = {name: value for name, value in line.items() if name not in skipped and isinstance(value, (int, float))}
    return {name: float(value) for name, value in found.items() if not isinstance(value, bool)}
