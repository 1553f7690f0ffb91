"""How busy each role is: over the last minute for a person, and over whole steps for diagnoses.

Cumulative readings come in, about one a second; a share is the difference of two. A minute that begins or ends within a
step weighs its phases wrongly, and a step may be longer than a minute. So diagnoses use a whole number of steps: those
of the last minute, and at least one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

WINDOW_SECONDS = 60.0
LEAST_SECONDS = 10.0  # of whole steps, at least: the end of a step is known to about a second


@dataclass(frozen=True)
class Reading:
    """Totals at time `at` (seconds of any clock) by role: member-seconds of work and of presence. `step`: the last one
    done; `waited`: seconds in which the learner had no batch."""

    at: float
    step: int
    work: Mapping[str, float]
    presence: Mapping[str, float]
    waited: float


@dataclass(frozen=True)
class RoleUse:
    """Shares of a role's member-seconds: busy, and waiting for work. The learner's need not add up to 1."""

    members: float  # mean
    busy: float
    waiting: float


@dataclass(frozen=True)
class Use:
    """Time, steps and shares between two readings."""

    seconds: float
    steps: int
    shares: Mapping[str, RoleUse]


@dataclass
class Window:
    """`learner` names the role whose waiting is measured; the others wait when they are not busy."""

    learner: str = "learner"
    _recent: deque[Reading] = field(default_factory=deque)
    _ends: deque[Reading] = field(default_factory=deque)  # the first reading after each end of a step

    def add(self, reading: Reading) -> None:
        """Add a reading. A step below the last, as after a rebuilt learner, restarts the whole steps."""
        last = self._recent[-1] if self._recent else None
        if last and reading.step < last.step:
            self.restart()
        elif last and reading.step > last.step:
            self._ends.append(reading)
            _forget(self._ends, reading.at)
        self._recent.append(reading)
        _forget(self._recent, reading.at)

    def restart(self) -> None:
        """Drop the steps so far: the members have changed."""
        self._ends.clear()

    def last_minute(self) -> Use | None:
        """The last minute; None before two readings."""
        return self._between(self._recent)

    def whole_steps(self) -> Use | None:
        """Whole steps; None before two ends of steps that are LEAST_SECONDS apart."""
        use = self._between(self._ends)
        return use if use and use.seconds >= LEAST_SECONDS else None

    def _between(self, readings: deque[Reading]) -> Use | None:
        if len(readings) < 2 or readings[-1].at <= readings[0].at:
            return None
        first, last = readings[0], readings[-1]
        seconds = last.at - first.at
        shares: dict[str, RoleUse] = {}
        for role, there in last.presence.items():
            there -= first.presence.get(role, 0.0)
            if there <= 0.0:
                continue
            # presence is counted when read, work when it changes: they differ by what came or went within a second
            busy = min(1.0, (last.work[role] - first.work.get(role, 0.0)) / there)
            waited = (last.waited - first.waited) / seconds if role == self.learner else 1.0 - busy
            shares[role] = RoleUse(there / seconds, busy, min(1.0, waited))
        return Use(seconds, last.step - first.step, shares)


def _forget(readings: deque[Reading], now: float) -> None:
    """Drop readings older than the window; at least two stay."""
    while len(readings) > 2 and readings[1].at <= now - WINDOW_SECONDS:
        readings.popleft()
