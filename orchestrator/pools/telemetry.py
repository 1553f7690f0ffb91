"""Counters of a run: busy seconds of roles and members, tokens and bytes of a step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyClock:
    """Wall seconds in which at least one activity ran."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._active = 0
        self._since = 0.0
        self._total = 0.0

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """Start an activity; call `end` after it."""
        if not self._active:
            self._since = self._now()
        self._active += 1

    def end(self) -> None:
        self._active -= 1
        if not self._active:
            self._total += self._now() - self._since

    @property
    def active(self) -> bool:
        return self._active > 0

    def total(self) -> float:
        """Seconds so far, up to now while an activity runs."""
        return self._total + (self._now() - self._since if self._active else 0.0)


class MemberClock:
    """Busy seconds summed over the members of a role, each counted once whatever its number of calls. O(1) a call."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._calls: Counter[int] = Counter()  # running calls by member number
        self._since = now()
        self._total = 0.0

    @contextmanager
    def busy(self, member: int) -> Iterator[None]:
        self.begin(member)
        try:
            yield
        finally:
            self.end(member)

    def begin(self, member: int) -> None:
        """Start a call of a member; call `end` after it."""
        self._change(member, 1)

    def end(self, member: int) -> None:
        self._change(member, -1)

    def total(self) -> float:
        """Member-seconds so far, up to now for running calls."""
        return self._total + len(self._calls) * (self._now() - self._since)

    def _change(self, member: int, calls: int) -> None:
        now = self._now()
        self._total, self._since = self._total + len(self._calls) * (now - self._since), now
        self._calls[member] += calls
        if not self._calls[member]:
            del self._calls[member]


class Meter:
    """Counts and busy seconds: since the last `read_and_reset` of a step, and since the beginning."""

    INLINE_LIMIT = 100 * 1024  # bytes; Ray keeps smaller values inside their owner

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._counts: Counter[str] = Counter()
        self._clocks: dict[str, BusyClock] = {}
        self._phases: dict[str, BusyClock] = {}
        self._earlier: Counter[str] = Counter()  # counts of the steps before
        self._before: dict[str, float] = {}
        self._last_read = now()

    def clock(self, role: str) -> BusyClock:
        """The clock of a role: rollout, score, reward, learn, publish or wait."""
        return self._clocks.setdefault(role, BusyClock(self._now))

    def phase(self, name: str) -> BusyClock:
        """The clock of a part of a weight sync: gather, load or follow. No step's metrics hold it."""
        return self._phases.setdefault(name, BusyClock(self._now))

    def phase_seconds(self) -> dict[str, float]:
        """Busy seconds of each phase since the beginning."""
        return {name: clock.total() for name, clock in self._phases.items()}

    def total(self, name: str) -> int:
        """A count since the beginning."""
        return self._earlier[name] + self._counts[name]

    def count(self, name: str, amount: int) -> None:
        self._counts[name] += amount

    def payload(self, size: int) -> None:
        """Count the bytes of a payload that Ray keeps inside its owner."""
        if size < self.INLINE_LIMIT:
            self._counts["bytes_inlined"] += size

    def working(self) -> tuple[str, ...]:
        """Roles that are busy now."""
        return tuple(role for role, clock in self._clocks.items() if clock.active and role != "wait")

    def read_and_reset(self) -> dict[str, float]:
        """Counts, `seconds_<role>` and the wall `seconds_step` since the last call."""
        now, counts = self._now(), dict(self._counts)
        self._earlier.update(self._counts)
        self._counts.clear()
        totals = {role: clock.total() for role, clock in self._clocks.items()}
        seconds = {f"seconds_{role}": total - self._before.get(role, 0.0) for role, total in totals.items()}
        self._before, elapsed, self._last_read = totals, now - self._last_read, now
        return {**counts, **seconds, "seconds_step": elapsed}
