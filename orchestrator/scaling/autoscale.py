"""Autoscaling between bounds, from the diagnoses that `status` shows. A state machine without tasks, clients or clock.

It grows the bottleneck when the predicted gain was large enough in several diagnoses in a row. It shrinks a role whose
other members would still be idle enough, at next to no loss. It changes one member at a time, and none while an earlier
change is under way. The gain that growing needs is far above the loss that shrinking may cost, so sizes do not
oscillate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from configs.roles.sizes import Bounds
from orchestrator.scaling.bottleneck import Diagnosis, Prospect

GROW_AFTER, SHRINK_AFTER = 3, 6  # diagnoses in a row; a member too many costs less than one too few
WORTH_GROWING = 0.05  # predicted gain of samples/s
MAY_COST = 0.01  # predicted loss of samples/s
IDLE = 0.5  # largest busy share of the members that stay


@dataclass(frozen=True)
class Decision:
    """Scale `role` to `size` members, with the reason in a few words."""

    role: str
    size: int
    why: str


@dataclass
class Autoscaler:
    """`bounds` by role; a role without bounds keeps its size."""

    bounds: Mapping[str, Bounds]
    _full: set[str] = field(default_factory=set)  # roles whose last new member found no place
    _streaks: dict[tuple[str, int], int] = field(default_factory=dict)  # (role, direction) -> diagnoses in a row

    def decide(self, diagnosis: Diagnosis | None, sizes: Mapping[str, int], settled: bool) -> Decision | None:
        """At most one change. The diagnosis rests on steps since the last call. `sizes`: members by role; `settled`: no
        member joins or leaves."""
        if diagnosis is None or not settled:
            self._streaks.clear()
            return None
        wanted = {role: self._direction(role, diagnosis, sizes) for role in self.bounds}
        self._streaks = {(role, step): self._streaks.get((role, step), 0) + 1 for role, step in wanted.items() if step}
        ripe = [key for key, streak in self._streaks.items() if streak >= (GROW_AFTER if key[1] > 0 else SHRINK_AFTER)]
        if not ripe:
            return None
        role, step = max(ripe, key=lambda key: key[1])
        self._streaks.clear()
        return Decision(role, sizes[role] + step, _reason(step, diagnosis, diagnosis.prospects[role]))

    def no_place(self, role: str) -> None:
        """A new member of the role found no place: do not grow it again."""
        self._full.add(role)

    def _direction(self, role: str, diagnosis: Diagnosis, sizes: Mapping[str, int]) -> int:
        """1: grow, -1: shrink, 0: keep."""
        prospect, bounds, size = diagnosis.prospects.get(role), self.bounds[role], sizes.get(role, 0)
        if prospect is None:
            return 0
        within = {step: bounds.min <= size + step <= bounds.max for step in (1, -1)}
        if role == diagnosis.bottleneck and prospect.more >= WORTH_GROWING:
            return 1 if within[1] and role not in self._full else 0
        return -1 if within[-1] and _spares_one(prospect) else 0


def _spares_one(prospect: Prospect) -> bool:
    return prospect.fewer >= -MAY_COST and prospect.work_with_fewer <= IDLE


def _reason(step: int, diagnosis: Diagnosis, prospect: Prospect) -> str:
    if step > 0:
        return f"the bottleneck, busy {diagnosis.busy:.0%}; one more: {prospect.more:+.0%} samples/s"
    return f"those that stay would work {prospect.work_with_fewer:.0%} of the time"
