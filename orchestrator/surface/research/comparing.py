"""`logratio compare`: arms against the first, at equal budgets, with paired intervals over seeds and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from configs.refusal import RecipeError
from orchestrator.surface.research.arms import arm_of, labels
from orchestrator.surface.research.curves import AXES, Curve, overall, shared
from orchestrator.surface.research.paired import Paired, none, paired
from orchestrator.surface.research.runs import WHOLE, ReadRun

MEAN = "mean"  # over the range of a budget, in place of one
UNSHARED = {
    "steps": "no step after which all runs were evaluated; give them the same evaluate.every",
    "tokens": "no number of sampled tokens that all runs have passed",
    "gpu_seconds": "no GPU-seconds that all runs have passed; a run without a GPU has none",
    "kl": "no distance from the start that all runs have passed; set metrics.start_kl",
}

Pair = tuple[Curve, Curve]  # of one seed: the first arm's, the other's


@dataclass(frozen=True)
class Arm:
    """Runs of one recipe that differ in their seed."""

    label: str
    runs: Mapping[int, ReadRun]


@dataclass(frozen=True)
class Compared:
    """An arm against the first one by a metric, at one budget or over its range. `first` and `other`: the means."""

    metric: str
    arm: str
    axis: str
    at: float | str | None
    first: float | None
    other: float | None
    found: Paired

    def plain(self) -> dict[str, Any]:
        interval = None if self.found.low is None else [self.found.low, self.found.high]
        return {
            "metric": self.metric,
            "arm": self.arm,
            "axis": self.axis,
            "at": self.at,
            "baseline": self.first,
            "value": self.other,
            "difference": self.found.mean,
            "interval": interval,
            "seeds": self.found.seeds,
            "prompts": self.found.prompts,
            "why_none": self.found.why,
        }


def arms_of(runs: Sequence[ReadRun]) -> tuple[list[Arm], list[str]]:
    """Runs as arms, the first run's first, and notices of runs that are left out. Raises RecipeError for fewer than two
    arms."""
    grouped: dict[str, dict[int, ReadRun]] = {}
    notices: list[str] = []
    for run in runs:
        mine = grouped.setdefault(arm_of(run.recipe), {})
        if (seed := run.recipe.run.seed) in mine:
            notices.append(f"{run.directory} is left out: {mine[seed].directory} is of the same recipe and seed")
            continue
        mine[seed] = run
    if len(grouped) < 2:
        raise RecipeError(
            f"compare: {len(runs)} runs of one recipe, which differ in nothing but the seed; name another"
        )
    firsts = [next(iter(mine.values())).recipe for mine in grouped.values()]
    names = labels(firsts)
    return [Arm(name, mine) for name, mine in zip(names, grouped.values(), strict=True)], notices


def compare(arms: Sequence[Arm], metrics: Sequence[str], axes: Sequence[str]) -> Iterator[Compared]:
    """Every arm but the first against the first, by each metric, along each axis. Raises RecipeError for a metric that
    a run has not."""
    for metric in metrics:
        for arm in arms[1:]:
            seeds = sorted(arms[0].runs.keys() & arm.runs.keys())
            pairs = _curves([(arms[0].runs[seed], arm.runs[seed]) for seed in seeds], metric)
            for axis in axes:
                head = Compared(metric, arm.label, axis, None, None, None, none(_no_seed(arms[0], arm), len(seeds)))
                yield from _along(pairs, head) if pairs else [head]


def _curves(runs: Sequence[tuple[ReadRun, ReadRun]], metric: str) -> list[Pair]:
    """The curves of runs of one seed each. By prompt where every evaluation has values of the same prompts."""
    whole = [(one.curve(metric, whole=True), other.curve(metric, whole=True)) for one, other in runs]
    by_prompt = [(one.curve(metric), other.curve(metric)) for one, other in runs]
    lost = any(
        len(mine.points) < len(its.points)
        for a, b in zip(by_prompt, whole, strict=True)
        for mine, its in zip(a, b, strict=True)
    )
    return by_prompt if _prompts(by_prompt) and not lost else whole


def _along(pairs: Sequence[Pair], head: Compared) -> Iterator[Compared]:
    curves = [curve for pair in pairs for curve in pair]
    places = shared(curves, head.axis)
    if not len(places):
        empty = sorted({curve.seed for curve in curves if not curve.points})
        why = f"no evaluation was found of seeds {empty}; let the runs evaluate" if empty else UNSHARED[head.axis]
        yield replace(head, found=none(why, len(pairs)))
        return
    for at, budgets in (*((float(x), np.asarray([x])) for x in places), (MEAN, overall(places))):
        if len(budgets):
            yield _at(pairs, budgets, replace(head, at=at))


def _at(pairs: Sequence[Pair], budgets: np.ndarray, head: Compared) -> Compared:
    """The means over the budgets, and their difference."""
    prompts = _prompts(pairs)
    values = np.asarray([[curve.at(head.axis, budgets, prompts).mean(axis=0) for curve in pair] for pair in pairs])
    first, other = values[:, 0], values[:, 1]
    found = paired(other - first, prompts != [WHOLE])
    return replace(head, first=float(first.mean()), other=float(other.mean()), found=found)


def _prompts(pairs: Sequence[Pair]) -> list[str]:
    """Prompts that every evaluation of every run has."""
    common = [curve.prompts() for pair in pairs for curve in pair]
    return sorted(frozenset.intersection(*common)) if common else []


def _no_seed(first: Arm, other: Arm) -> str:
    return (
        f"no common seed: the first arm has {sorted(first.runs)}, this one {sorted(other.runs)}; "
        "run both with the same run.seed"
    )


def table_of(found: Sequence[Compared]) -> Table:
    """A row a comparison; bold where the interval excludes 0."""
    table = Table("metric", "arm", "against", "at", "first", "arm's", "difference", "95% interval", "seeds")
    for one in found:
        interval = one.found.why or f"{_short(one.found.low)} to {_short(one.found.high)}"
        table.add_row(
            one.metric,
            one.arm,
            one.axis,
            _short(one.at),
            *(_short(value) for value in (one.first, one.other, one.found.mean)),
            interval,
            str(one.found.seeds),
            style="bold" if one.found.differs else None,
        )
    return table


def results(arms: Sequence[Arm], found: Sequence[Compared], notices: Sequence[str]) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "baseline": arms[0].label,
        "arms": [{"arm": a.label, "runs": {str(s): str(r.directory) for s, r in a.runs.items()}} for a in arms],
        "axes": dict(AXES),
        "comparisons": [one.plain() for one in found],
        "notices": list(notices),
    }


def _short(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"
