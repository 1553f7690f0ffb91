"""Autoscaling between bounds: which role gets a member more or fewer, from the same verdicts that `status` shows. Pure
decisions; a state machine that owns no tasks, clients or clock.

It grows the bottleneck when that has promised enough for several judgements in a row, and shrinks a role that would be
idle enough with one member fewer and cost nothing. One member at a time, and none while an earlier change is under way.
What is worth growing for is far more than what shrinking may cost, so a member that came is not sent away again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from configs.roles import Bounds
from orchestrator.scaling.bottleneck import Prospect, Verdict

GROW_AFTER, SHRINK_AFTER = 3, 6  # judgements in a row; a member too many costs less than one too few
WORTH_GROWING = 0.05  # predicted gain of samples/s
MAY_COST = 0.01  # predicted loss of samples/s
IDLE = 0.5  # most work, as a share of their time, of the members that stay


@dataclass(frozen=True)
class Decision:
    """Scale `role` to `size` members; `why`, in a few words."""

    role: str
    size: int
    why: str


@dataclass
class Autoscaler:
    """`bounds` by role; a role without any keeps its size."""

    bounds: Mapping[str, Bounds]
    _full: set[str] = field(default_factory=set)  # roles that found no place for another member
    _streaks: dict[tuple[str, int], int] = field(default_factory=dict)  # (role, direction) -> judgements in a row

    def decide(self, verdict: Verdict | None, sizes: Mapping[str, int], settled: bool) -> Decision | None:
        """At most one change, from a verdict on steps that no earlier call has seen. `sizes` are members by role;
        `settled`: nobody joins or leaves."""
        if verdict is None or not settled:
            self._streaks.clear()
            return None
        wanted = {role: self._direction(role, verdict, sizes) for role in self.bounds}
        self._streaks = {(role, step): self._streaks.get((role, step), 0) + 1 for role, step in wanted.items() if step}
        ripe = [key for key, streak in self._streaks.items() if streak >= (GROW_AFTER if key[1] > 0 else SHRINK_AFTER)]
        if not ripe:
            return None
        role, step = max(ripe, key=lambda key: key[1])
        self._streaks.clear()
        return Decision(role, sizes[role] + step, _reason(step, verdict, verdict.prospects[role]))

    def no_place(self, role: str) -> None:
        """A member that was decided on could not be brought up: the role does not grow any more."""
        self._full.add(role)

    def _direction(self, role: str, verdict: Verdict, sizes: Mapping[str, int]) -> int:
        """1: grow, -1: shrink, 0: keep."""
        prospect, bounds, size = verdict.prospects.get(role), self.bounds[role], sizes.get(role, 0)
        if prospect is None:
            return 0
        within = {step: bounds.min <= size + step <= bounds.max for step in (1, -1)}
        if role == verdict.bottleneck and prospect.more >= WORTH_GROWING:
            return 1 if within[1] and role not in self._full else 0
        return -1 if within[-1] and _spares_one(prospect) else 0


def _spares_one(prospect: Prospect) -> bool:
    return prospect.fewer >= -MAY_COST and prospect.work_with_fewer <= IDLE


def _reason(step: int, verdict: Verdict, prospect: Prospect) -> str:
    if step > 0:
        return f"the bottleneck, busy {verdict.busy:.0%}; one more: {prospect.more:+.0%} samples/s"
    return f"those that stay would work {prospect.work_with_fewer:.0%} of the time"
