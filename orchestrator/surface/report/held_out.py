"""The curves of held-out sets: each metric over steps with its interval, and gain against the movement it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plotly import graph_objects as go

from actors.metrics import AVERAGE_AT, PASS_AT
from configs.evaluation import HELDOUT

Line = Mapping[str, Any]
CURVES = (  # title, unit, beginnings of the metrics' names
    ("Held-out sets: passing", "probability, bars: 95% intervals", (PASS_AT,)),
    ("Held-out sets: reward", "mean over prompts", (AVERAGE_AT, "format_rate")),
    ("Held-out sets: KL to the start", "nats a token", ("start_kl",)),
    ("Held-out text: loss", "nats a token", ("nll",)),
)
GAINS = (  # title, unit, movement
    ("Gain against movement", "reward or passing, over KL to the start in nats a token", "start_kl"),
    ("Gain against weights changed", "reward or passing, over the share of weights changed in bf16", "weights_changed"),
)
OVER = {title: unit.rpartition(", over ")[2] for title, unit, _ in GAINS}  # the panels whose abscissa is not the step


def figures_of(summary: Line, last: int) -> list[tuple[str, str, go.Figure]]:
    """(title, unit, figure) of each panel; those without data have none. `last`: the step after the run."""
    evaluation = summary.get("evaluation") or {}
    sets = {name: lines_of(one, last) for name, one in (evaluation.get("sets") or {}).items()}
    moved = {line["step"]: line for line in evaluation.get("movement") or ()}
    all_sets = {HELDOUT: lines_of(evaluation, last), **sets}
    with_movement = {name: [moved.get(line["step"], {}) | line for line in one] for name, one in all_sets.items()}
    found = [(title, unit, _over_steps(sets, names)) for title, unit, names in CURVES]
    return [*found, *((title, unit, _gain(with_movement, over)) for title, unit, over in GAINS)]


def lines_of(of_set: Line, last: int) -> list[Line]:
    """The evaluations of a set, each with its step: 0 before the run, `last` after it; ascending."""
    ends = [{"step": step, **of_set[when]} for when, step in (("before", 0), ("after", last)) if of_set.get(when)]
    return sorted([*ends, *(of_set.get("steps") or ())], key=lambda line: line["step"])


def _over_steps(sets: Mapping[str, Sequence[Line]], beginnings: tuple[str, ...]) -> go.Figure:
    figure = go.Figure()
    for label, metric, lines in _curves(sets, beginnings):
        known = [line for line in lines if line.get(metric) is not None]
        values = [line[metric] for line in known]
        bounds = [
            (line.get("intervals") or {}).get(metric) or (value, value)
            for line, value in zip(known, values, strict=True)
        ]
        bars = {
            "array": [high - value for (_, high), value in zip(bounds, values, strict=True)],
            "arrayminus": [value - low for (low, _), value in zip(bounds, values, strict=True)],
            "thickness": 1,
        }
        figure.add_scatter(x=[line["step"] for line in known], y=values, name=label, mode="lines+markers", error_y=bars)
    return figure


def _gain(sets: Mapping[str, Sequence[Line]], over: str) -> go.Figure:
    """A metric of a set over a movement: a point an evaluation, joined in order of steps."""
    figure = go.Figure()
    for label, metric, lines in _curves(sets, (PASS_AT, AVERAGE_AT, "reward_mean")):
        known = [line for line in lines if line.get(metric) is not None and line.get(over) is not None]
        if known:
            x, y = ([line[name] for line in known] for name in (over, metric))
            steps = [f"step {line['step']}" for line in known]
            figure.add_scatter(x=x, y=y, name=label, text=steps, mode="lines+markers")
    return figure


def _curves(
    sets: Mapping[str, Sequence[Line]], beginnings: tuple[str, ...]
) -> Iterator[tuple[str, str, Sequence[Line]]]:
    """(label, metric, lines) of each metric of each set that has a value."""
    for name, lines in sets.items():
        metrics = dict.fromkeys(metric for line in lines for metric in line if metric.startswith(beginnings))
        for metric in metrics:
            if any(line.get(metric) is not None for line in lines):
                yield f"{name} {metric}", metric, lines
