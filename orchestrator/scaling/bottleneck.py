"""Finds the bottleneck of a run, and predicts samples/s with one member more or fewer of each role. Pure.

A role can do more only while it waits, so its work is 1 - waiting, in units of a step. Work is assumed to divide evenly
among members: with one more, each of m has m/(m+1) of it. This is an upper bound for an engine that batches requests,
since it counts as busy with one request.

With `max_staleness` above 0 the roles overlap. Each could carry throughput / work samples/s; the bottleneck is the role
that could carry least.

With `max_staleness` 0 two phases alternate: the learner waits for its batch, then the others wait for the learner. In
the first, rollouts, scorers and rewards form a pipeline, so that only the largest work counts; one more member shortens
the step by the decrease of the largest. The rest of that phase (the longest response, delays between roles) stays. The
bottleneck belongs to the longer phase: the learner, or the role with most work in the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RoleFigures:
    """Mean number of members, and shares of their time busy and waiting, 0 to 1. `elastic`: its size may change."""

    members: float
    busy: float
    waiting: float
    elastic: bool


@dataclass(frozen=True)
class Figures:
    """Measurements over whole steps; `throughput` in samples/s. `learner` names the role that makes the steps."""

    roles: Mapping[str, RoleFigures]
    throughput: float
    max_staleness: int
    learner: str = "learner"


@dataclass(frozen=True)
class Prospect:
    """Relative change of samples/s (0.31 is +31%) with one member `more` and one `fewer`. `work_with_fewer`: busy share
    of the members that stay. Without its last member a role does nothing: -1."""

    more: float
    fewer: float = -1.0
    work_with_fewer: float = 1.0


@dataclass(frozen=True)
class Diagnosis:
    """`busy`: share of the bottleneck; `throughput`: measured samples/s; `prospects`: by elastic role."""

    bottleneck: str
    busy: float
    throughput: float
    prospects: Mapping[str, Prospect]


def find_bottleneck(figures: Figures) -> Diagnosis | None:
    """None if nothing was trained, or no role was busy."""
    if figures.throughput <= 0.0 or figures.learner not in figures.roles:
        return None
    work = _work(figures)
    bottleneck = _bottleneck(figures, work)
    if not work[bottleneck]:
        return None
    prospects = {name: _prospect(figures, work, name) for name, role in figures.roles.items() if role.elastic}
    return Diagnosis(bottleneck, figures.roles[bottleneck].busy, figures.throughput, prospects)


def _work(figures: Figures) -> dict[str, float]:
    """Work of a member, in units of the measured step. With `max_staleness` 0 it is limited to the learner's wait: the
    rest, e.g. of an evaluation, is not the step's."""
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
        """Relative change of samples/s, and work of a member in units of the resulting step."""
        share = work[name] * members / size
        change = now / _length(figures, work, {**work, name: share})
        return change - 1.0, share * change

    more, _ = resized(members + 1.0)
    return Prospect(more, *resized(members - 1.0)) if members > 1.0 else Prospect(more)


def _length(figures: Figures, measured: Mapping[str, float], work: Mapping[str, float]) -> float:
    """Length of a step with `work` in place of the measured work. With overlap it is the bottleneck's work, for
    the measured step too: the share that it waits is assumed to stay."""
    if figures.max_staleness:
        return max(work.values())
    return 1.0 - _largest(figures, measured) + _largest(figures, work)


def _largest(figures: Figures, work: Mapping[str, float]) -> float:
    return max((share for name, share in work.items() if name != figures.learner), default=0.0)
