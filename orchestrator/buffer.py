"""Scored samples between rollout and learner: admit, drop, select. Owns references, opens no payload.

A batch is the next groups in lease order, whole; within it samples are in uid order. Arrival decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.records import SampleHeader


@dataclass(frozen=True, slots=True)
class Scored:
    """A sample that is ready to train on: its header and references to the payloads that hold its row, of scores by
    the model that gave them. `source` wrote it; `teacher_entropy` is a sum over its tokens, nats, where known."""

    header: SampleHeader
    samples: Any
    scores: Mapping[str, Any] = field(default_factory=dict)
    reward: float | None = None
    source: str = "student"
    teacher_entropy: float | None = None


@dataclass
class Buffer:
    groups_per_step: int
    samples_per_group: int
    first: int = 0
    last_dropped: tuple[str, str] | None = None
    _groups: dict[int, dict[str, Scored | None]] = field(default_factory=dict)

    def admit(self, scored: Scored) -> None:
        """Take a sample in. A second copy of a uid, from a lease presumed lost, is ignored: the first one counts."""
        self._place(scored.header.uid, scored)

    def drop(self, uid: str, reason: str) -> None:
        """Bad data is not retried: its place in the group stays empty."""
        self.last_dropped = uid, reason
        self._place(uid, None)

    def take(self) -> list[Scored] | None:
        """The next batch in uid order once all its groups are whole, else None."""
        indices = range(self.first, self.first + self.groups_per_step)
        if any(len(self._groups.get(i, ())) < self.samples_per_group for i in indices):
            return None
        self.first += self.groups_per_step
        groups = [self._groups.pop(i) for i in indices]
        return [scored for group in groups for _, scored in sorted(group.items()) if scored is not None]

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def _place(self, uid: str, scored: Scored | None) -> None:
        index = int(uid.split(".")[0])
        if index >= self.first:
            self._groups.setdefault(index, {}).setdefault(uid, scored)
