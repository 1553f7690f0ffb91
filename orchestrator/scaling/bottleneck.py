"""Which role holds the run up, and what one member more or fewer of each would do to samples/s. Pure.

A role can take on more only while it waits, so its work is 1 - waiting, in lengths of a step. It is taken to divide
among the role's members: with one more, each of m has m/(m+1) of it. That is the most that may be hoped for from an
engine that answers many requests at once, since it counts as busy with one of them.

With `max_staleness` above 0 the roles overlap. Each could carry throughput / work samples/s, and whoever could carry
least holds up the others.

With `max_staleness` 0 two phases alternate: the learner waits for its batch, then the others wait for the learner. In
the first, rollouts, scorers and rewards stream into each other, so of their work only the largest counts; one more
member shortens the step by what it takes off the largest. What else that phase holds (the longest response, the way
from one role to the next) nobody shortens. The bottleneck is of the longer phase: the learner, or the role with most
work in the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RoleFigures:
    """Mean members, and shares of their time at work and waiting, 0 to 1. Only an `elastic` role changes its size."""

    members: float
    busy: float
    waiting: float
    elastic: bool


@dataclass(frozen=True)
class Figures:
    """What was measured over whole steps; `throughput` in samples/s. `learner` names the role that makes the steps."""

    roles: Mapping[str, RoleFigures]
    throughput: float
    max_staleness: int
    learner: str = "learner"


@dataclass(frozen=True)
class Prospect:
    """What becomes of samples/s, relative (0.31 is +31%), with one member `more`, and with one `fewer`, when those that
    stay work a share `work_with_fewer` of their time. The last one takes everything with it."""

    more: float
    fewer: float = -1.0
    work_with_fewer: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """`busy` is the bottleneck's, `throughput` (samples/s) as measured, `prospects` those of elastic roles."""

    bottleneck: str
    busy: float
    throughput: float
    prospects: Mapping[str, Prospect]


def find_bottleneck(figures: Figures) -> Verdict | None:
    """None where nothing can be concluded: nothing was trained, or nobody was seen at work."""
    if figures.throughput <= 0.0 or figures.learner not in figures.roles:
        return None
    work = _work(figures)
    bottleneck = _bottleneck(figures, work)
    if not work[bottleneck]:
        return None
    prospects = {name: _prospect(figures, work, name) for name, role in figures.roles.items() if role.elastic}
    return Verdict(bottleneck, figures.roles[bottleneck].busy, figures.throughput, prospects)


def _work(figures: Figures) -> dict[str, float]:
    """Work a member, in lengths of the measured step. Under alternation no more of it counts than fits into the wait:
    the rest, of an evaluation, say, is none of the step's."""
    wait = figures.roles[figures.learner].waiting
    work = {name: 1.0 - role.waiting for name, role in figures.roles.items()}
    if figures.max_staleness == 0:
        work |= {name: min(wait, work[name]) for name in work if name != figures.learner}
    return work


def _bottleneck(figures: Figures, work: Mapping[str, float]) -> str:
    others = [name for name in work if name != figures.learner]
    if figures.max_staleness:
        candidates = [*others, figures.learner]
    else:
        candidates = others if others and work[figures.learner] < 0.5 else [figures.learner]
    return max(candidates, key=lambda name: work[name])


def _prospect(figures: Figures, work: Mapping[str, float], name: str) -> Prospect:
    members, now = figures.roles[name].members, _length(figures, work, work)

    def resized(size: float) -> tuple[float, float]:
        """Change of samples/s, and work a member in lengths of the step that follows."""
        share = work[name] * members / size
        change = now / _length(figures, work, {**work, name: share})
        return change - 1.0, share * change

    more, _ = resized(members + 1.0)
    return Prospect(more, *resized(members - 1.0)) if members > 1.0 else Prospect(more)


def _length(figures: Figures, measured: Mapping[str, float], work: Mapping[str, float]) -> float:
    """Length of a step with `work` in place of what was measured. Under overlap the measured one counts as the work of
    its bottleneck: how much that one waits is taken to stay."""
    if figures.max_staleness:
        return max(work.values())
    return 1.0 - _largest(figures, measured) + _largest(figures, work)


def _largest(figures: Figures, work: Mapping[str, float]) -> float:
    return max((share for name, share in work.items() if name != figures.learner), default=0.0)
