"""The page that a person reads after a run: `report.html`, one self-contained file.

It is made from the files of the run's directory alone; what is missing there is left out or shown as missing. The page
makes no network request: its scripts are inline, and its content policy forbids others.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from actors.metrics import EVALUATION_METRICS, ROLES, STEP_METRICS
from orchestrator.surface.report.held_out import OVER, figures_of
from orchestrator.surface.report.recorded import (
    CHARTS,
    CLIP,
    COMPONENTS,
    EXITS,
    FREE,
    SPECIAL,
    Decode,
    Row,
    held_out_points,
    object_of,
    question_in,
    recorded_steps,
    rows_of,
    shown,
    text_of,
)

HELD_OUT_ROWS, STEPS_SHOWN, SAMPLES_PER_STEP, TOKENS_SHOWN, SKIPPED_ROWS = 16, 3, 4, 800, 100

# Legible on white and on black, and distinct under common kinds of colour blindness.
COLOURS = ("#3b82f6", "#d9701f", "#119a83", "#b66ad6", "#a98200", "#7c879a")  # as the live page has: static/charts.js
BARS = (*(f"seconds_{role}" for role in ROLES), "seconds_wait")
RATES = ("tokens_generated", "tokens_scored", "tokens_trained")


class Answer(NamedTuple):
    """A held-out question and its answers as plain text, without special tokens. None if not sampled."""

    uid: str
    prompt: str
    before: str | None
    after: str | None


class Skipped(NamedTuple):
    """Samples of one prompt that were skipped for one reason. `prompt` is None if unknown."""

    uids: list[str]
    reason: str
    prompt: str | None


def write_report(run_directory: Path, decode: Decode) -> Path:
    """Write `report.html` into the run directory and return its path. `decode` keeps special tokens."""
    metrics, summary = _metrics(run_directory / "metrics.jsonl"), object_of(run_directory / "summary.json")
    recipe, code = text_of(run_directory / "recipe.yaml"), summary.get("exit")
    evaluations = summary.get("evaluation") or {}
    evaluation = {when: evaluations.get(when) or {} for when in ("before", "after")}
    held_out = held_out_points(summary, metrics[-1]["step"] if metrics else 0)
    skipped = skipped_prompts(summary)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["nats"] = lambda value, form="%.2f": "–" if value is None else form % value
    page = environment.get_template("report.html.j2").render(
        name=_run_name(recipe) or run_directory.name,
        state="not finished" if code is None else EXITS.get(code, str(code)),
        good=code == 0,
        biased=summary.get("biased") or (),
        swaps=summary.get("swaps") or (),
        length=_length(summary.get("steps") or len(metrics), summary),
        tiles=_tiles(metrics, evaluation),
        charts=_charts(metrics, held_out, figures_of(summary, metrics[-1]["step"] if metrics else 0)),
        skipped=skipped[:SKIPPED_ROWS],
        skipped_more=len(skipped[SKIPPED_ROWS:]),
        updates_skipped=summary.get("updates_skipped") or (),
        restarts=summary.get("restarts") or {},
        rebuilds=summary.get("learner_rebuilds") or 0,
        answers=held_out_answers(run_directory, decode)[:HELD_OUT_ROWS],
        steps=_sample_steps(run_directory, decode),
        recipe=recipe,
        summary=json.dumps(summary, indent=1) if summary else "",
        terms=STEP_METRICS,
        clip=CLIP,
        limit=TOKENS_SHOWN,
        plotly=get_plotlyjs(),
    )
    path, partial = run_directory / "report.html", run_directory / f".report.html.{os.getpid()}"
    try:
        partial.write_text(page, encoding="utf-8")
        return partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)  # frees a full disk
        raise


def held_out_answers(run_directory: Path, decode: Decode, greedy: bool = False) -> list[Answer]:
    """Held-out questions in order of uid, with answers before and after the run: sampled in the evaluations, or
    greedy."""
    stems = (f"eval_{when}{'_greedy' if greedy else ''}" for when in ("before", "after"))
    before, after = ({row["uid"]: row for row in rows_of(run_directory, stem)} for stem in stems)

    def answer(row: Row | None) -> str | None:
        return None if row is None else SPECIAL.sub("", decode(row["response_ids"])).strip()

    return [
        Answer(uid, question_in(decode((before.get(uid) or after[uid])["prompt_ids"])), *map(answer, pair))
        for uid in sorted(before.keys() | after.keys())
        for pair in [(before.get(uid), after.get(uid))]
    ]


def skipped_prompts(summary: Row) -> list[Skipped]:
    """Skipped samples in order of uid, grouped by prompt and reason."""
    prompts, found = summary.get("skipped_prompts") or {}, {}
    for uid, reason in sorted((summary.get("skipped") or {}).items()):
        found.setdefault((uid.split(".")[0], reason), []).append(uid)
    return [Skipped(uids, reason, prompts.get(group)) for (group, reason), uids in found.items()]


# Files of the run directory.


def _metrics(path: Path) -> list[Row]:
    """Lines of metrics.jsonl that have a step; one cut short by a crash is skipped. Non-finite values become None."""
    lines = []
    for line in text_of(path).splitlines():
        values = object_of(path, line)
        if values.get("step") is not None:
            lines.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()})
    return lines


def _run_name(recipe: str) -> str | None:
    try:
        return str(yaml.safe_load(recipe)["run"]["name"])
    except (yaml.YAMLError, TypeError, KeyError):
        return None


# The headline.


def _length(steps: int, summary: Row) -> str:
    """The length of the run, in steps and in time."""
    seconds, startup = summary.get("seconds"), summary.get("seconds_startup")
    text = f"{steps} step" if steps == 1 else f"{steps} steps"
    text += f" in {_duration(seconds)}" if seconds is not None else ""
    return text + (f" (start-up: {_duration(startup)})" if startup else "")


def _tiles(metrics: list[Row], evaluation: dict[str, Row]) -> list[tuple[str, str, str, str]]:
    """(label, before -> after, change, remark) of each evaluated metric that was measured."""
    tiles = []
    for name in (n for n in EVALUATION_METRICS if n != "kl_support"):
        ends, where = [evaluation[when].get(name) for when in ("before", "after")], "held-out"
        support = evaluation["before"].get("kl_support")
        if ends == [None, None]:
            measured = [line for line in metrics if line.get(name) is not None]
            ends, where = [line[name] for line in measured[:1] + measured[-1:]], "first, last step"
            support = measured[0].get("kl_support") if measured else None
        if ends:
            remark = f"{where}, {support} support" if support and name.endswith("kl") else where
            tiles.append((_label(name), " → ".join(map(_number, ends)), _change(*ends), remark))
    return tiles


def _change(before: float | None, after: float | None) -> str:
    return f"{100 * (after - before) / abs(before):+.0f} %" if before and after is not None else ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _label(name: str) -> str:
    return name.replace("_", " ").replace("kl", "KL")


# The curves.


def _charts(
    metrics: list[Row], held_out: list[Row], of_sets: list[tuple[str, str, go.Figure]]
) -> list[tuple[str, str, str]]:
    """(title, unit, html) of each panel with data."""
    figures = [(title, unit, _curves(names, metrics, held_out)) for title, unit, names in CHARTS]
    figures.append(("Components of the reward", "mean of a step, unweighted", _components(metrics)))
    figures += of_sets
    figures.append(("Where the seconds went", "busy seconds a step, roles overlap", _seconds(metrics)))
    figures.append(("Tokens", "tokens a second", _rates(metrics)))
    return [
        (title, unit, _html(figure, f"chart-{n}", title not in FREE, title))
        for n, (title, unit, figure) in enumerate(figures)
        if figure.data
    ]


def _curves(names: Sequence[str], metrics: list[Row], held_out: list[Row]) -> go.Figure:
    """A line a metric, and diamonds for its held-out values before, during and after training."""
    figure = go.Figure()
    for name, colour in zip(names, COLOURS, strict=False):
        _line(figure, metrics, [line.get(name) for line in metrics], _label(name), colour)
        points = [(row["step"], row[name]) for row in held_out if row.get(name) is not None]
        if points and name in EVALUATION_METRICS:
            x, y = zip(*points, strict=True)
            marker = {"symbol": "diamond-open", "size": 10, "color": colour, "line": {"width": 2}}
            label = f"{_label(name)}, held-out"
            figure.add_scatter(x=x, y=y, name=label, mode="markers", marker=marker, showlegend=False)
    return figure


def _components(metrics: list[Row]) -> go.Figure:
    """A line a component; none where the reward has one component only."""
    figure, parts = go.Figure(), [line.get(COMPONENTS) or {} for line in metrics]
    names = list(dict.fromkeys(name for held in parts for name in held))
    for place, name in enumerate(names if len(names) > 1 else ()):
        _line(figure, metrics, [held.get(name) for held in parts], name, COLOURS[place % len(COLOURS)])
    return figure


def _seconds(metrics: list[Row]) -> go.Figure:
    """Stacked bars of busy seconds. Roles overlap, so the length of the step is drawn over them."""
    figure = go.Figure()
    for name, colour in zip(BARS, COLOURS, strict=True):
        values = [line.get(name) for line in metrics]
        if any(values):
            label, steps = name.removeprefix("seconds_"), [line["step"] for line in metrics]
            figure.add_bar(x=steps, y=values, name=label, marker={"color": colour})
    _line(figure, metrics, [line.get("seconds_step") for line in metrics], "whole step", "#e11d48")
    return figure


def _rates(metrics: list[Row]) -> go.Figure:
    figure = go.Figure()
    for name, colour in zip(RATES, COLOURS, strict=False):
        pairs = [(line.get(name), line.get("seconds_step")) for line in metrics]
        values = [n / s if n is not None and s else None for n, s in pairs]
        _line(figure, metrics, values, name.removeprefix("tokens_"), colour)
    return figure


def _line(figure: go.Figure, metrics: list[Row], values: list[float | None], name: str, colour: str) -> None:
    if any(value is not None for value in values):
        mode = "lines+markers" if len(metrics) <= 40 else "lines"
        style = {"line": {"color": colour, "width": 2}, "marker": {"size": 5}}
        figure.add_scatter(x=[line["step"] for line in metrics], y=values, name=name, mode=mode, **style)


def _html(figure: go.Figure, identity: str, from_zero: bool, title: str = "") -> str:
    """A transparent panel; the page's style sheet colours text and grid. A single line has no legend."""
    several = sum(trace.get("showlegend", True) for trace in figure.to_dict()["data"]) > 1
    figure.update_layout(
        template="none", height=270, margin={"l": 52, "r": 10, "t": 8, "b": 34}, hovermode="x unified",
        showlegend=several, barmode="stack",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"family": "inherit", "size": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}, bargap=0.25,
        xaxis={"title": {"text": "step", "standoff": 4}, "tickformat": "d", "zeroline": False, "showgrid": False},
        yaxis={"rangemode": "tozero" if from_zero else "normal", "automargin": True, "hoverformat": ".4g"},
    )  # fmt: skip
    if title in OVER:
        figure.update_layout(hovermode="closest", xaxis={"title": {"text": OVER[title]}, "tickformat": ".3g"})
    options = {"displayModeBar": False, "displaylogo": False, "responsive": True, "scrollZoom": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, div_id=identity, config=options)


# The samples.


def _sample_steps(run_directory: Path, decode: Decode) -> list[tuple[int, list[Row]]]:
    """A few samples of the first, middle and last recorded step."""
    steps = recorded_steps(run_directory)
    chosen = sorted({round(i * (len(steps) - 1) / (STEPS_SHOWN - 1)) for i in range(STEPS_SHOWN)}) if steps else []
    rows = [(steps[i], rows_of(run_directory, f"step_{steps[i]:06d}", SAMPLES_PER_STEP)) for i in chosen]
    piece = cache(lambda token: decode([token]))
    return [(step, [shown(row, decode, piece) for row in found]) for step, found in rows if found]
