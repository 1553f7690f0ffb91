"""Gradients of objectives on recorded samples, in this process: a forward and backward pass a prompt group, no update.

A prompt group is the unit of noise: with g_i the parts of n groups and G their sum, the variance of G is estimated by
n / (n - 1) * sum |g_i - G/n|^2, and the square of its mean without bias by |G|^2 less that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from actors.learning.batch import Batch
from actors.learning.saved_model import put_saved
from actors.learning.student import Head, Student, Targets
from actors.models import loading
from actors.models.causal_lm import Pack, Projection, projection_from, projection_of
from actors.models.probing.probe import Packing
from actors.wire.jobs import Share
from configs.objective import Objective as ObjectiveConfig
from objectives import objective
from objectives.schedule import Dials


@dataclass(frozen=True)
class Weights:
    """A model directory, and the checkpoint whose weights it gets, if any; computed in float32 on the host. `heads`: by
    model and version, the directory that has the LM head of kept hidden states, and the dtype that it was served in."""

    model: Path
    checkpoint: Path | None
    packing: Packing
    vocabulary: int
    tokens_per_chunk: int
    heads: Mapping[Head, tuple[Path, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """An objective, and the share by which it reads the samples: a micro-batch a prompt group."""

    objective: ObjectiveConfig
    share: Share
    temperature: float
    ends: tuple[int, ...] = ()


@dataclass
class Gradient:
    """The sum of the groups' gradients, by parameter, and what is known of the pass. `squares` is sum |g_i|^2."""

    total: list[Tensor] = field(default_factory=list)
    squares: float = 0.0
    groups: int = 0
    loss: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    drift: float = 0.0

    def plain(self, loss_tokens: int) -> dict[str, Any]:
        """`loss` in nats, `grad_norm`, `signal_to_noise` (both squared, None of one group), shares of loss tokens that
        are `clipped` (the log-ratio) and `held` (the trust region), None without such a bound; `drift`: mean |log-prob
        now less the recorded one|, nats."""
        norm = dot(self.total, self.total)
        shares = {name: self.sums[name] / loss_tokens if name in self.sums else None for name in ("clipped", "held")}
        return {
            "loss": self.loss,
            "grad_norm": math.sqrt(norm),
            "signal_to_noise": signal_to_noise(norm, self.squares, self.groups),
            "clipped_fraction": shares["clipped"],
            "held_fraction": shares["held"],
            "drift": self.drift / loss_tokens,
        }


def replay(weights: Weights, sides: Sequence[Side], payloads: Sequence[Sequence[pa.RecordBatch]]) -> dict[str, Any]:
    """What each side's gradient is on the same samples, and the `cosine` of the first two; None of one side, or where
    a gradient is 0. `payloads`: those that each side's share names. Raises ModelRefused, OSError or ValueError for
    weights that cannot be read."""
    loaded = loading.load(weights.model, "float32", "sdpa", weights.packing, torch.device("cpu"))
    if weights.checkpoint is not None:
        put_saved(loaded.model, weights.checkpoint, weights.model)
    heads = {head: _head(*place, weights) for head, place in weights.heads.items()}
    found = [_gradient(loaded, weights, heads, side, given) for side, given in zip(sides, payloads, strict=True)]
    plain = [one.plain(max(1, side.share.loss_tokens)) for one, side in zip(found, sides, strict=True)]
    return {"sides": plain, "cosine": cosine(found[0].total, found[1].total) if len(found) > 1 else None}


def _head(directory: Path, dtype: str, weights: Weights) -> Projection:
    """A served model's LM head."""
    loaded = loading.load(directory, dtype, "sdpa", weights.packing, torch.device("cpu"))
    return projection_from(projection_of(loaded.model, weights.vocabulary, loaded.handling), torch.device("cpu"))


def _gradient(
    loaded: loading.Loaded,
    weights: Weights,
    heads: Mapping[Head, Projection],
    side: Side,
    payloads: Sequence[pa.RecordBatch],
) -> Gradient:
    built = objective.build(side.objective, None, side.objective.merged_ends(side.ends))
    handling = loaded.handling
    student = Student(loaded.model, built, weights.vocabulary, weights.tokens_per_chunk, handling, side.temperature)
    student.heads.update(heads)
    batch = Batch(side.share, payloads, side.objective, handling.packs)
    batch.old = _recorded(payloads)
    parameters = [p for p in student.parameters() if p.requires_grad]
    found = Gradient([torch.zeros_like(p, dtype=torch.float32) for p in parameters])
    for uids in side.share.micro_batches:
        pack, targets = batch.micro_batch(uids)
        loss, sums, streams = student(pack, targets, side.share.dials)
        if loss.requires_grad:
            loss.backward()
        old = targets.tokens.old_logprob
        first = loss.detach() if old is None else _first_loss(student, pack, targets, side.share.dials)
        _add(found, parameters, float(first), sums)
        if old is not None:
            found.drift += float(((streams["logprob"] - old).abs() * targets.tokens.on).sum())
    return found


@torch.no_grad()
def _first_loss(student: Student, pack: Pack, targets: Targets, dials: Dials) -> Tensor:
    """The loss that a step's line has: of a first pass, in which q_old is the student itself. A surrogate of a ratio
    has the same gradient there, and another value."""
    return student(pack, replace(targets, tokens=targets.tokens.as_first()), dials)[0]


def _add(found: Gradient, parameters: Sequence[Tensor], loss: float, sums: dict[str, Tensor]) -> None:
    """Take one group's gradient, and leave none behind."""
    for total, parameter in zip(found.total, parameters, strict=True):
        if parameter.grad is not None:
            total += parameter.grad
            found.squares += float(parameter.grad.double().square().sum())
            parameter.grad = None
    found.groups += 1
    found.loss += loss
    for name, value in sums.items():
        found.sums[name] = found.sums.get(name, 0.0) + float(value)


def _recorded(payloads: Sequence[pa.RecordBatch]) -> dict[str, dict[str, np.ndarray]]:
    """The learner's log-probs as the record has them, by stream and uid: those of q_old."""
    found: dict[str, dict[str, np.ndarray]] = {}
    columns = {"logprob": "student_logprobs", "class_logprob": "class_logprobs"}
    rows = [row for payload in payloads if columns["logprob"] in payload.schema.names for row in payload.to_pylist()]
    for stream, column in columns.items():
        if rows and all(row[column] is not None for row in rows):
            found[stream] = {row["uid"]: np.asarray(row[column], np.float32) for row in rows}
    return found


def signal_to_noise(norm: float, squares: float, groups: int) -> float | None:
    """|mean|^2 over the variance of a sum of `groups` parts, `norm` = |sum|^2, `squares` = sum |part|^2; at least 0.
    None of one part, or where all parts are equal."""
    if groups < 2:
        return None
    noise = groups / (groups - 1) * max(0.0, squares - norm / groups)
    return max(0.0, norm - noise) / noise if noise > 0.0 else None


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float | None:
    """Of two gradients; None where one is 0."""
    scale = math.sqrt(dot(one, one) * dot(other, other))
    return dot(one, other) / scale if scale > 0.0 else None


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
