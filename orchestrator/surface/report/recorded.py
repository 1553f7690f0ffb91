"""What a run left in its directory, as a reader sees it: files, recorded responses, and their tokens with log-ratios.

Files may be missing, cut short by a crash, or half written by a run that goes on: what cannot be read is left out.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from actors.wire.trained import LIKELIEST

logger = logging.getLogger(__name__)

Decode = Callable[[Sequence[int]], str]
Row = dict[str, Any]

BROKEN = "\ufffd"  # a part of a UTF-8 character decodes to this

EXITS = {0: "done", 1: "failed", 2: "refused", 3: "stopped, resumable"}
CLIP, NEUTRAL = 3.0, 0.05  # |log-ratio| in nats: full colour from CLIP on, no colour below NEUTRAL

SPECIAL = re.compile(r"<[|｜][^<>|｜]{1,40}[|｜]>|</?s>|<(?:bos|eos|pad|unk|(?:start|end)_of_turn)>")
USER_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)

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
COMPONENTS = "reward_component"  # of a line: {component: mean}, drawn as one curve each
FREE = ("Entropy", "Response length", "Reward", "Components of the reward", "Loss")  # their axes need not begin at zero


class Token(NamedTuple):
    """One or more ids that are shown as one text, with means over them in nats. ratio = log p - log q, student q,
    teacher p. `likeliest`: the teacher's, (text, log p) each, at the first id; empty if not recorded."""

    text: str
    ratio: float | None
    student: float | None
    teacher: float | None
    in_loss: bool
    likeliest: tuple[tuple[str, float], ...] = ()

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


# Files of the run directory.


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def object_of(path: Path, text: str | None = None) -> Row:
    """The JSON object in `text`, or in the file; empty if it cannot be read."""
    try:
        value = json.loads((text_of(path) if text is None else text) or "{}")
    except json.JSONDecodeError as error:
        logger.warning("%s: %s", path, error)
        return {}
    return value if isinstance(value, dict) else {}


def recorded_steps(run_directory: Path) -> list[int]:
    """The steps whose trained samples were recorded, ascending."""
    names = (p.name for p in (run_directory / "samples").glob("step_*.rank*.arrow"))
    return sorted({int(m[1]) for name in names if (m := re.match(r"step_(\d+)\.", name))})


def rows_of(run_directory: Path, stem: str, limit: int | None = None, start: int = 0) -> list[Row]:
    """`limit` rows by uid, from `start` on, of samples/<stem>.rank*.arrow. A file cut short by a crash is skipped."""
    table = table_of(run_directory, stem)
    return table.slice(start, limit).to_pylist() if table else []


def table_of(run_directory: Path, stem: str) -> pa.Table | None:
    """The rows by uid of samples/<stem>.rank*.arrow; None without any."""
    tables = []
    for path in sorted((run_directory / "samples").glob(f"{stem}.rank*.arrow")):
        try:
            with pa.OSFile(str(path)) as source:
                tables.append(pa.ipc.open_file(source).read_all())
        except (pa.ArrowInvalid, OSError) as error:
            logger.warning("%s: %s", path, error)
    return pa.concat_tables(tables).sort_by("uid") if tables else None


def held_out_points(summary: Row, last: int) -> list[Row]:
    """The evaluations of a summary, each with its step: 0 before the run, `last` after it; ascending."""
    evaluations = summary.get("evaluation") or {}
    ends = [(evaluations.get(when) or {}) | {"step": step} for when, step in (("before", 0), ("after", last))]
    return sorted([*ends, *(evaluations.get("steps") or ())], key=lambda row: row["step"])


# The responses.


def question_in(prompt: str) -> str:
    """The last user turn of a chat prompt, else the whole prompt; without special tokens."""
    turns = USER_TURN.findall(prompt)
    return SPECIAL.sub("", turns[-1] if turns else prompt).strip()


def shown(row: Row, decode: Decode, piece: Callable[[int], str]) -> Row:
    """What the page shows of a row of trained.TRAINED."""
    prompt, tokens = decode(row["prompt_ids"]), token_spans(row, decode, piece)
    mean = mean_of([r for r, loss in zip(_ratios(row), _in_loss(row), strict=True) if loss])
    return row | {"prompt": prompt, "question": question_in(prompt), "tokens": tokens, "mean": mean}


def token_spans(row: Row, decode: Decode, piece: Callable[[int], str]) -> list[Token]:
    """The response as tokens to show; `piece` decodes a single id."""
    columns = [_ratios(row), row["student_logprobs"] or [], row["teacher_logprobs"] or []]
    loss = _in_loss(row)
    return [
        Token(
            text,
            *(mean_of(column[start:end]) for column in columns),
            in_loss=any(loss[start:end]),
            likeliest=_likeliest(row, start, piece),
        )
        for text, start, end in _pieces(row["response_ids"], decode, piece)
    ]


def _likeliest(row: Row, place: int, piece: Callable[[int], str]) -> tuple[tuple[str, float], ...]:
    """What the teacher found likeliest at a position; runs recorded before there was such a column have none."""
    ids, logprobs = row.get("likeliest_ids"), row.get("likeliest_logprobs")
    if not ids or not logprobs:
        return ()
    held = slice(place * LIKELIEST, (place + 1) * LIKELIEST)
    return tuple(
        (piece(i), logprob)
        for i, logprob in zip(ids[held], logprobs[held], strict=True)
        if i >= 0 and math.isfinite(logprob)
    )


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


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the finite values; None without any."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
