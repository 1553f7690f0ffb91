"""What a probe measured: the learner's metrics of one batch, and what its recorded responses say of tails, ends and
late tokens. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

TAIL = 5.0  # nats: a log-ratio beyond it either way is of the tail
REFUSED = math.log(20.0)  # nats: at an end token that it finds 20 times less likely the teacher would not have ended so
HALF = 8  # tokens that each half of a response needs to be compared with the other


@dataclass(frozen=True)
class Measured:
    """By the names of PROBE_METRICS and STEP_METRICS in actors/metrics.py; None: unknown."""

    topk_overlap: float | None = None
    topk_mass_student: float | None = None
    topk_mass_teacher: float | None = None
    reverse_kl: float | None = None
    entropy: float | None = None
    teacher_entropy: float | None = None
    log_ratio_p1: float | None = None
    log_ratio_p99: float | None = None
    tail_fraction: float | None = None
    end_disagreement: float | None = None
    late_kl: float | None = None
    logprob_gap_mean: float | None = None
    effective_sample_size: float | None = None
    response_length: float | None = None
    truncated_fraction: float | None = None


def measured(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Measured:
    """`metrics` by the names of STEP_METRICS; `rows`: the recorded responses, by the columns of TRAINED."""
    names = [field.name for field in fields(Measured)]
    known = {name: metrics[name] for name in names if metrics.get(name) is not None}
    lengths = [len(row["response_ids"]) for row in rows]
    of_rows = {
        "tail_fraction": tail_fraction(rows),
        "end_disagreement": end_disagreement(rows),
        "late_kl": late_kl(rows),
        "response_length": fmean(lengths) if rows else None,
        "truncated_fraction": fmean(row["finish"] == "length" for row in rows) if rows else None,
    }
    return Measured(**known | of_rows)


def tail_fraction(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of tokens whose log-ratio is beyond TAIL nats, either way."""
    ratios = [ratio for row in rows for ratio in log_ratios(row)]
    return fmean(abs(ratio) > TAIL for ratio in ratios) if ratios else None


def end_disagreement(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the responses that the student ended: the share at whose end token the log-ratio is below -REFUSED."""
    ends = [ratios[-1] for row in rows if row["finish"] == "stop" and (ratios := log_ratios(row))]
    return fmean(end < -REFUSED for end in ends) if ends else None


def late_kl(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean k1 of the tokens in the second half of their response, over that in the first half; of responses with HALF
    tokens in each. None where there is no first KL to compare with."""
    first, second = [], []
    for ratios in map(log_ratios, rows):
        middle = len(ratios) // 2
        if middle >= HALF:
            first += ratios[:middle]
            second += ratios[middle:]
    early = -fmean(first) if first else 0.0
    return -fmean(second) / early if early > 0.0 else None


def log_ratios(row: Mapping[str, Any]) -> list[float]:
    """log p - log q of each token, nats; empty where the row has no teacher."""
    teacher, student = row["teacher_logprobs"], row["class_logprobs"] or row["student_logprobs"]
    return list(_differences(teacher, student)) if teacher else []


def _differences(teacher: Sequence[float], student: Sequence[float]) -> Iterator[float]:
    for p, q in zip(teacher, student, strict=True):
        if not (math.isnan(p) or math.isnan(q)):
            yield p - q
