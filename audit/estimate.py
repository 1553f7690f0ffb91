"""Exact expected gradients in the student's logits: the learner's loss of every response, by its probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit.bench import Bench, Draws
from objectives.objective import Objective
from objectives.tokens import Tokens

Run = Callable[[Tensor, Tokens], Tensor]  # (student log-probs [N, V], tokens) -> the loss of a micro-batch
NEGLIGIBLE = 1e-9  # relative to a typical response's gradient: rounding error of an exact zero


@dataclass(frozen=True)
class Estimate:
    """mean [S * V]: the expected gradient of one response; square: the expected squared norm."""

    mean: Tensor
    square: float

    @property
    def norm(self) -> float:
        return float(self.mean.norm())

    @property
    def silent(self) -> bool:
        """The mean is 0 up to rounding."""
        return self.norm <= NEGLIGIBLE * max(self.square**0.5, 1e-300)

    @property
    def variance(self) -> float:
        """Trace of the covariance of one response's gradient, relative to the squared norm of the mean."""
        return float("inf") if self.silent else max(0.0, self.square - self.norm**2) / self.norm**2


def production(objective: Objective, bench: Bench) -> Run:
    """The loss as in the learner: `read`, then `loss`."""

    def run(student_logprobs: Tensor, tokens: Tokens) -> Tensor:
        streams = objective.read(student_logprobs, tokens, bench.dials)
        if tokens.old_value is not None:
            streams["value"] = tokens.old_value
        return objective.loss(streams, tokens, bench.dials)

    return run


def row_gradients(run: Run, draws: Draws, student: Tensor) -> Tensor:
    """d loss / d student logits, separately for every token, [N, V]; student [S, V]."""
    return gradients_at(run, draws.tokens, student[draws.node])


def gradients_at(run: Run, tokens: Tokens, logits: Tensor) -> Tensor:
    """d loss / d logits at given logits [N, V] of each token."""
    logits = logits.detach().clone().requires_grad_()
    loss = run(logits.log_softmax(-1), tokens)
    if not loss.requires_grad:
        return torch.zeros_like(logits)
    (found,) = torch.autograd.grad(loss, logits, allow_unused=True)
    return torch.zeros_like(logits) if found is None else found


def estimate(run: Run, parts: Sequence[tuple[float, Draws]], student: Tensor, factor: float = 1.0) -> Estimate:
    """Expected gradient over several sources' responses, by their shares. `factor`: undoes the loss's own division."""
    mean, square = torch.zeros(student.numel(), dtype=student.dtype), 0.0
    for share, draws in parts:
        chance, responses = draws.probability, len(draws.probability)
        place = draws.tokens.sequence * len(student) + draws.node
        each = torch.zeros(responses * len(student), student.shape[-1], dtype=student.dtype)
        each = each.index_add(0, place, factor * row_gradients(run, draws, student)).view(responses, -1)
        mean = mean + share * (chance @ each)
        square += share * float(chance @ each.square().sum(-1))
    return Estimate(mean, square)


def without_correction(draws: Draws, student: Tensor) -> Draws:
    """The responses with the student's log-probs as the sampler's, so that every importance ratio is 1."""
    tokens = draws.tokens
    return replace(draws, tokens=replace(tokens, rollout_logprob=student[draws.node, tokens.token_ids]))


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two flat gradients; 0 where one of them is 0."""
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 1e-30 else 0.0


def scale(a: Tensor, b: Tensor) -> float:
    """The s that minimises |a - s b|."""
    square = float(b @ b)
    return float(a @ b) / square if square > 1e-30 else 0.0
