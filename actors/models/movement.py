"""How far a model's weights moved from where they began: what changed beyond bf16, how far, and in how many directions.

In come two sources of tensors with the names of the model's files; out go numbers of each tensor. One pair of tensors
is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from actors.models.model_files import tensor_files

EXACT = 128  # a matrix with no more directions gets all its singular values
SKETCH = 64  # singular values that are computed of a larger one
POWER_ITERATIONS = 4  # of the randomised SVD; 2 leave the last of 64 values a few per cent too small
SEED = 0  # of the random sketch: twice the same


@dataclass(frozen=True)
class Moved:
    """One tensor. `changed`: weights that differ after both were rounded to bf16 (to nearest, ties to even), so a
    change below half a step of bf16 counts only where it crosses a boundary. `change`, `start`: squared Frobenius norms
    of the change and of the start, of the values as stored, in float64. Of a matrix that moved: `rank` is the
    effective rank of its change, `most` the directions that it has, `seen` the share of `change` in the singular values
    that were computed."""

    weights: int
    changed: int
    change: float
    start: float
    rank: float | None = None
    most: int | None = None
    seen: float | None = None


class Files:
    """The floating-point tensors of a model directory, read when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self._files = tensor_files(directory)

    def keys(self) -> set[str]:
        return set(self._files)

    def __getitem__(self, name: str) -> Tensor:
        opened: AbstractContextManager[Any] = safe_open(self._files[name], framework="pt")
        with opened as file:
            return file.get_tensor(name)


def movement(start: Files, now: Files | Mapping[str, Tensor]) -> Iterator[tuple[str, Moved]]:
    """(name, numbers) of each tensor that both have: one of them may not store a tied copy, or heads that no one
    trains. Raises ValueError if they have none in common, or shapes differ: they are not of one model."""
    names = start.keys() & now.keys()
    if not names:
        raise ValueError("it has no tensor of the start's names")
    for name in sorted(names):
        before, after = start[name], now[name]
        if before.shape != after.shape:
            raise ValueError(f"{name} is {list(after.shape)}, and {list(before.shape)} in the start")
        if before.is_floating_point():
            yield name, moved(before, after)


def counted_from(start: Files, now: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """`weights_changed` and `weights_distance` as in MOVEMENT_METRICS, without a spectrum: what a run can afford
    between two steps. 0 of no tensors, as other ranks than the first have."""
    known = start.keys()
    found = [counted(start[name].to(t.device), t) for name, t in now if name in known and t.is_floating_point()]
    weights, norm = sum(one.weights for one in found), sum(one.start for one in found)
    distance = math.sqrt(sum(one.change for one in found) / norm) if norm else 0.0
    return {"weights_changed": sum(one.changed for one in found) / max(1, weights), "weights_distance": distance}


def counted(start: Tensor, now: Tensor) -> Moved:
    """The numbers of one tensor of any shape and floating-point dtypes, but for its rank."""
    changed = int((start.bfloat16() != now.bfloat16()).sum())
    change = float((now.float() - start.float()).double().square().sum())
    return Moved(start.numel(), changed, change, float(start.double().square().sum()))


def moved(start: Tensor, now: Tensor) -> Moved:
    """The numbers of one tensor. Only a matrix (two dimensions) has a rank."""
    found = counted(start, now)
    if start.dim() != 2 or found.change == 0.0:
        return found
    most = min(start.shape)
    shares = spectrum((now.float() - start.float()) / math.sqrt(found.change))
    seen = min(1.0, float(shares.sum()))
    return replace(found, rank=effective_rank(shares, most), most=most, seen=seen)


def spectrum(unit: Tensor) -> Tensor:
    """Squared singular values, float64, descending, of a matrix of Frobenius norm 1: all of them if it has at most
    EXACT directions, else the largest SKETCH by a randomised SVD (Halko, Martinsson and Tropp 2011, arXiv
    0909.4061)."""
    if min(unit.shape) <= EXACT:
        return torch.linalg.svdvals(unit.double()).square()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return torch.svd_lowrank(unit, q=SKETCH, niter=POWER_ITERATIONS)[1].double().square()


def effective_rank(shares: Tensor, directions: int) -> float:
    """exp of the entropy of the shares of the squared Frobenius norm by direction: r for r equal singular values.

    The entropy of Roy and Vetterli (2007, "The effective rank"), over squared singular values: their sum is the squared
    norm, which needs no SVD. What `shares` lack to 1 is spread evenly over the directions without a share. So where the
    SVD saw part of the spectrum it is an upper bound, equal where the rest is flat, as rounding noise is.
    """
    known = shares[shares > 0]
    entropy = -float((known * known.log()).sum())
    rest, unseen = 1.0 - float(shares.sum()), directions - len(shares)
    if unseen > 0 and rest > 0.0:
        entropy -= rest * math.log(rest / unseen)
    return math.exp(entropy)
