"""The page that a person reads after a run: `report.html`, one self-contained file.

It is made from the files of the run's directory alone; what is missing there is left out or shown as missing. The page
makes no network request: its scripts are inline, and its content policy forbids others.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import yaml
from jinja2 import Environment, FileSystemLoader
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from actors.metrics import EVALUATION_METRICS, ROLES, STEP_METRICS

logger = logging.getLogger(__name__)

Decode = Callable[[Sequence[int]], str]
Row = dict[str, Any]

BROKEN = "\ufffd"  # a part of a UTF-8 character decodes to this

EXITS = {0: "done", 1: "failed", 2: "refused", 3: "stopped, resumable"}
CLIP, NEUTRAL = 3.0, 0.05  # |log-ratio| in nats: full colour from CLIP on, no colour below NEUTRAL
HELD_OUT_ROWS, STEPS_SHOWN, SAMPLES_PER_STEP, TOKENS_SHOWN, SKIPPED_ROWS = 16, 3, 4, 800, 100

SPECIAL = re.compile(r"<[|｜][^<>|｜]{1,40}[|｜]>|</?s>|<(?:bos|eos|pad|unk|(?:start|end)_of_turn)>")
USER_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)

# Legible on white and on black, and distinct under common kinds of colour blindness.
COLOURS = ("#3b82f6", "#e8833a", "#14a38b", "#b66ad6", "#d1a300", "#8a94a6")
FREE = ("Entropy", "Response length", "Reward", "Loss")  # their axes need not begin at zero
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


class Token(NamedTuple):
    """One or more ids that are shown as one text, with means over them in nats. ratio = log p - log q, student q,
    teacher p."""

    text: str
    ratio: float | None
    student: float | None
    teacher: float | None
    in_loss: bool

    @property
    def special(self) -> bool:
        return bool(SPECIAL.fullmatch(self.text))

    @property
    def sign(self) -> str:
        """neg if the teacher finds the token less likely than the student, pos if more likely, else empty."""
        return "" if self.ratio is None or abs(self.ratio) < NEUTRAL else "neg" if self.ratio < 0 else "pos"

    @property
    def strength(self) -> float:
        """Strength of the colour, 0 to 1."""
        return min(abs(self.ratio or 0.0), CLIP) / CLIP


CHARTS = (  # title, unit, metrics
    ("KL to the teacher", "nats a token", ("reverse_kl", "forward_kl")),
    ("Entropy", "nats a token", ("entropy", "teacher_entropy")),
    ("Response length", "tokens", ("response_length",)),
    ("Truncated responses", "share", ("truncated_fraction",)),
    ("Reward", "mean of a step", ("reward_mean",)),
    ("Loss", "nats", ("loss",)),
    ("Gradient norm", "before clipping", ("grad_norm",)),
    ("Staleness", "versions", ("staleness_mean", "staleness_max")),
    ("Learner against rollout", "mean |log-prob gap|, nats", ("logprob_gap_mean",)),
)


def write_report(run_directory: Path, decode: Decode) -> Path:
    """Write `report.html` into the run directory and return its path. `decode` keeps special tokens."""
    metrics, summary = _metrics(run_directory / "metrics.jsonl"), _json(run_directory / "summary.json")
    recipe, code = _text(run_directory / "recipe.yaml"), summary.get("exit")
    evaluations = summary.get("evaluation") or {}
    evaluation = {when: evaluations.get(when) or {} for when in ("before", "after")}
    ends = {"before": 0, "after": metrics[-1]["step"] if metrics else 0}
    held_out = [*(evaluation[when] | {"step": step} for when, step in ends.items()), *(evaluations.get("steps") or ())]
    held_out.sort(key=lambda row: row["step"])
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
        charts=_charts(metrics, held_out),
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
    before, after = ({row["uid"]: row for row in _rows(run_directory, stem)} for stem in stems)

    def answer(row: Row | None) -> str | None:
        return None if row is None else SPECIAL.sub("", decode(row["response_ids"])).strip()

    return [
        Answer(uid, _question(decode((before.get(uid) or after[uid])["prompt_ids"])), *map(answer, pair))
        for uid in sorted(before.keys() | after.keys())
        for pair in [(before.get(uid), after.get(uid))]
    ]


def skipped_prompts(summary: Row) -> list[Skipped]:
    """Skipped samples in order of uid, grouped by prompt and reason."""
    prompts, found = summary.get("skipped_prompts") or {}, {}
    for uid, reason in sorted((summary.get("skipped") or {}).items()):
        found.setdefault((uid.split(".")[0], reason), []).append(uid)
    return [Skipped(uids, reason, prompts.get(group)) for (group, reason), uids in found.items()]


def _question(prompt: str) -> str:
    """The last user turn of a chat prompt, else the whole prompt; without special tokens."""
    turns = USER_TURN.findall(prompt)
    return SPECIAL.sub("", turns[-1] if turns else prompt).strip()


# Files of the run directory.


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _metrics(path: Path) -> list[Row]:
    """Lines of metrics.jsonl that have a step; one cut short by a crash is skipped. Non-finite values become None."""
    lines = []
    for line in _text(path).splitlines():
        values = _json(path, line)
        if values.get("step") is not None:
            lines.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()})
    return lines


def _json(path: Path, text: str | None = None) -> Row:
    """The JSON object in `text`, or in the file; empty if it cannot be read."""
    try:
        value = json.loads((_text(path) if text is None else text) or "{}")
    except json.JSONDecodeError as error:
        logger.warning("report: %s: %s", path, error)
        return {}
    return value if isinstance(value, dict) else {}


def _run_name(recipe: str) -> str | None:
    try:
        return str(yaml.safe_load(recipe)["run"]["name"])
    except (yaml.YAMLError, TypeError, KeyError):
        return None


def _rows(run_directory: Path, stem: str, limit: int | None = None) -> list[Row]:
    """The first `limit` rows by uid of samples/<stem>.rank*.arrow. A file cut short by a crash is skipped."""
    tables = []
    for path in sorted((run_directory / "samples").glob(f"{stem}.rank*.arrow")):
        try:
            with pa.OSFile(str(path)) as source:
                tables.append(pa.ipc.open_file(source).read_all())
        except (pa.ArrowInvalid, OSError) as error:
            logger.warning("report: %s: %s", path, error)
    return pa.concat_tables(tables).sort_by("uid").slice(0, limit).to_pylist() if tables else []


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


def _charts(metrics: list[Row], held_out: list[Row]) -> list[tuple[str, str, str]]:
    """(title, unit, html) of each panel with data."""
    figures = [(title, unit, _curves(names, metrics, held_out)) for title, unit, names in CHARTS]
    figures.append(("Where the seconds went", "busy seconds a step, roles overlap", _seconds(metrics)))
    figures.append(("Tokens", "tokens a second", _rates(metrics)))
    return [
        (title, unit, _html(figure, f"chart-{n}", title not in FREE))
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


def _html(figure: go.Figure, identity: str, from_zero: bool) -> str:
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
    options = {"displayModeBar": False, "displaylogo": False, "responsive": True, "scrollZoom": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, div_id=identity, config=options)


# The samples.


def _sample_steps(run_directory: Path, decode: Decode) -> list[tuple[int, list[Row]]]:
    """A few samples of the first, middle and last recorded step."""
    names = (p.name for p in (run_directory / "samples").glob("step_*.rank*.arrow"))
    stems = sorted({m[0] for n in names if (m := re.match(r"step_\d+", n))}, key=lambda stem: int(stem[5:]))
    chosen = sorted({round(i * (len(stems) - 1) / (STEPS_SHOWN - 1)) for i in range(STEPS_SHOWN)}) if stems else []
    shown = [(int(stems[i][5:]), _rows(run_directory, stems[i], SAMPLES_PER_STEP)) for i in chosen]
    piece = cache(lambda token: decode([token]))
    return [(step, [_sample(row, decode, piece) for row in rows]) for step, rows in shown if rows]


def _sample(row: Row, decode: Decode, piece: Callable[[int], str]) -> Row:
    """What the page shows of a row of records.TRAINED."""
    prompt, tokens = decode(row["prompt_ids"]), token_spans(row, decode, piece)
    mean = _mean([r for r, loss in zip(_ratios(row), _in_loss(row), strict=True) if loss])
    return row | {"prompt": prompt, "question": _question(prompt), "tokens": tokens, "mean": mean}


def token_spans(row: Row, decode: Decode, piece: Callable[[int], str]) -> list[Token]:
    """The response as tokens to show; `piece` decodes a single id."""
    columns = [_ratios(row), row["student_logprobs"] or [], row["teacher_logprobs"] or []]
    loss = _in_loss(row)
    return [
        Token(text, *(_mean(column[start:end]) for column in columns), in_loss=any(loss[start:end]))
        for text, start, end in _pieces(row["response_ids"], decode, piece)
    ]


def _pieces(ids: list[int], decode: Decode, piece: Callable[[int], str]) -> Iterator[tuple[str, int, int]]:
    """(text, start, end) of runs of ids; the parts of a UTF-8 character form one run."""
    start = 0
    for i, token in enumerate(ids):
        if BROKEN not in piece(token) and start < i:  # the bytes so far are no character
            yield decode(ids[start:i]), start, i
            start = i
        text = piece(token) if start == i else decode(ids[start : i + 1])
        if BROKEN not in text:
            yield text, start, i + 1
            start = i + 1
    if start < len(ids):
        yield decode(ids[start:]), start, len(ids)


def _ratios(row: Row) -> list[float | None]:
    """log p - log q of each response token, nats; None if either is unknown."""
    q, p = row.get("class_logprobs") or row["student_logprobs"], row["teacher_logprobs"]
    q, p = (column or [None] * len(row["response_ids"]) for column in (q, p))
    return [None if a is None or b is None else b - a for a, b in zip(q, p, strict=True)]


def _in_loss(row: Row) -> list[bool]:
    return [any(start <= i < end for start, end in row["loss_spans"] or ()) for i in range(len(row["response_ids"]))]


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the finite values; None without any."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
