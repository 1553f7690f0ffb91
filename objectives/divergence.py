"""Divergences between a student q and a teacher p at one prefix, differentiable in the student.

All log-probs are natural (nats) and float32 or wider; every function maps [..., V] or [..., K] to [...].
Token-level definitions: Zhao et al. 2026 (arXiv 2605.16826); GKD (arXiv 2306.13649) for the generalised JSD;
DistiLLM (arXiv 2402.03898) for skew; PowerOPD (arXiv 2606.17199) for the power family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOGPROB_FLOOR = -50.0  # nats; lower bound of a teacher's log-prob in reverse terms

Name = Literal["linear", "jsd", "skew", "power"]


@dataclass(frozen=True)
class Family:
    """How the two directions of KL are combined. With lambda = `reverse_weight`, m a mixture of p and q, and alpha > 0:

    linear  lambda KL(q||p) + (1 - lambda) KL(p||q)
    jsd     lambda KL(p||m) + (1 - lambda) KL(q||m), m = lambda p + (1 - lambda) q; the KLs at lambda 0 and 1.
            `unit` divides by lambda (1 - lambda), which makes it continuous there.
    skew    lambda KL(q||(1 - alpha) p + alpha q) + (1 - lambda) KL(p||alpha p + (1 - alpha) q)
    power   sum_v q^(1+alpha)/(1+alpha) - q p^alpha + alpha p^(1+alpha)/(1+alpha); bounded, without lambda
    """

    name: Name = "linear"
    alpha: float = 0.1
    unit: bool = False


LINEAR = Family()


def token_kl(
    student_logprobs: Tensor, teacher_logprobs: Tensor, reverse_weight: float, floor: float = LOGPROB_FLOOR
) -> Tensor:
    """lambda * KL(q||p) + (1 - lambda) * KL(p||q) over the whole vocabulary.

    student_logprobs, teacher_logprobs: [..., V], normalised, nats. Returns [...], nats, >= 0 up to rounding.
    Gradient in the student's logits: lambda * q (log q - log p - KL(q||p)) + (1 - lambda) * (q - p).
    """
    return divergence(student_logprobs, teacher_logprobs, reverse_weight, floor=floor)


def support_kl(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    reverse_weight: float,
    tail: str = "bucket",
    floor: float = LOGPROB_FLOOR,
    teacher_tail: Tensor | None = None,
) -> Tensor:
    """token_kl's mixture on a fixed support of K tokens, with log-probs of full softmaxes.

    student_logprobs, teacher_logprobs: [..., K], nats; -inf in both marks an unused place. Returns [...], nats.
    `tail`: see `on_support`. `teacher_tail` [...]: the teacher's log(1 - sum), if known more exactly than from
    rounded log-probs. Raises ValueError for an unknown tail.
    """
    student, teacher = on_support(student_logprobs, teacher_logprobs, tail, teacher_tail)
    return divergence(student, teacher, reverse_weight, floor=floor)


def divergence(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    reverse_weight: float,
    family: Family = LINEAR,
    floor: float = LOGPROB_FLOOR,
    element_cap: float | None = None,
    token_cap: float | None = None,
) -> Tensor:
    """The family's divergence over the given outcomes, [..., V] -> [...], nats (power: no unit).

    `element_cap` caps each direction's term of each outcome before the sum (OPSD, arXiv 2601.18734), so that the sum
    may be negative. `token_cap` caps the sum. Capped values have no gradient.
    """
    total = torch.zeros((), dtype=student_logprobs.dtype, device=student_logprobs.device)
    for weight, elements in _directions(student_logprobs, teacher_logprobs, reverse_weight, family, floor):
        cut = elements if element_cap is None else elements.clamp(max=element_cap)
        total = total + weight * cut.sum(-1)
    return total if token_cap is None else total.clamp(max=token_cap)


def on_support(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    tail: str,
    teacher_tail: Tensor | None = None,
    student_tail: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of student and teacher over the outcomes of a support of K tokens. The tails [...] are log(1 - sum), if
    known more exactly than from the support. Raises ValueError for an unknown `tail`.

    bucket       K + 1 outcomes, the last is all other tokens: a true KL, a lower bound of the full one
    renormalise  K outcomes, both renormalised: blind to the mass off the support
    drop         K outcomes that do not sum to 1: no divergence, may be negative
    """
    if tail == "drop":
        return student_logprobs, teacher_logprobs
    if tail == "renormalise":
        used = student_logprobs > -torch.inf
        teacher = teacher_logprobs.clamp(min=4 * LOGPROB_FLOOR).masked_fill(~used, -torch.inf)
        return student_logprobs.log_softmax(-1), teacher.log_softmax(-1)  # a teacher without mass here becomes uniform
    if tail != "bucket":
        raise ValueError(f"tail {tail!r} is unknown; use 'bucket', 'renormalise' or 'drop'")
    if student_tail is None:
        student = with_tail(student_logprobs)
    else:
        student = torch.cat([student_logprobs, student_tail.unsqueeze(-1)], dim=-1)
    if teacher_tail is None:
        return student, with_tail(teacher_logprobs)
    # log-probs were rounded on the wire: normalise again
    return student, torch.cat([teacher_logprobs, teacher_tail.unsqueeze(-1)], dim=-1).log_softmax(-1)


def reverse_kl(student_logprobs: Tensor, teacher_logprobs: Tensor, floor: float = LOGPROB_FLOOR) -> Tensor:
    """KL(q||p) = sum_v q (log q - log p), [..., V] -> [...]; log p below `floor` counts as `floor`; 0 log 0 = 0."""
    return _reverse(student_logprobs, teacher_logprobs, floor).sum(-1)


def forward_kl(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(p||q) = sum_v p (log p - log q), [..., V] -> [...]; tokens with p = 0 contribute nothing."""
    return _forward(student_logprobs, teacher_logprobs).sum(-1)


def entropy(logprobs: Tensor) -> Tensor:
    """-sum_v q log q, [..., V] -> [...], nats; 0 log 0 = 0."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)


def with_tail(logprobs: Tensor) -> Tensor:
    """Append log(1 - sum of the support): [..., K] -> [..., K + 1]. Accurate and differentiable near a full support."""
    least = 8.0 * torch.finfo(logprobs.dtype).eps  # 1e-6 in float32: rounding error of a tail
    inside = torch.logsumexp(logprobs, dim=-1, keepdim=True).clamp(max=-least)
    return torch.cat([logprobs, torch.log(-torch.expm1(inside))], dim=-1)


def extrapolated(
    teacher_logprobs: Tensor, base_logprobs: Tensor, weight: float, floor: float = LOGPROB_FLOOR
) -> Tensor:
    """log p* of p* proportional to p^w base^(1-w): the target of ExOPD (arXiv 2602.12125). [..., V] -> [..., V]."""
    teacher, base = teacher_logprobs.clamp(min=floor), base_logprobs.clamp(min=floor)
    return (base + weight * (teacher - base)).log_softmax(-1)


def _directions(
    q: Tensor, p: Tensor, reverse_weight: float, family: Family, floor: float
) -> list[tuple[float, Tensor]]:
    """(weight, elementwise terms) of each direction; those of weight 0, whose terms may overflow, are left out."""
    lam, alpha = reverse_weight, family.alpha
    if family.name == "linear" or (family.name == "jsd" and lam in (0.0, 1.0)):
        parts = [(lam, lambda: _reverse(q, p, floor)), (1.0 - lam, lambda: _forward(q, p))]
    elif family.name == "jsd":
        scale = 1.0 / (lam * (1.0 - lam)) if family.unit else 1.0
        m = _mixture(p, q, lam, floor)  # near lam = 1 it is p, and the second term is (1 - lam) KL(q||p)
        parts = [
            (scale * lam, lambda: p.exp() * (_finite(p, floor) - m)),
            (scale * (1.0 - lam), lambda: q.exp() * (_finite(q, floor) - m)),
        ]
    elif family.name == "skew":
        parts = [
            (lam, lambda: q.exp() * (_finite(q, floor) - _mixture(p, q, 1.0 - alpha, floor))),
            (1.0 - lam, lambda: p.exp() * (_finite(p, floor) - _mixture(p, q, alpha, floor))),
        ]
    else:
        parts = [(1.0, lambda: _power(q, p, alpha))]
    return [(weight, terms()) for weight, terms in parts if weight]


def _reverse(q: Tensor, p: Tensor, floor: float) -> Tensor:
    return q.exp() * (q.clamp(min=4 * floor) - p.clamp(min=floor))  # below it q.exp() is 0; 0 * -inf is NaN


def _forward(q: Tensor, p: Tensor) -> Tensor:
    absent = p == -torch.inf
    return p.exp() * (p.masked_fill(absent, 0.0) - q.masked_fill(absent, 0.0))


def _power(q: Tensor, p: Tensor, alpha: float) -> Tensor:
    mass_q, mass_p, a = q.exp(), p.exp(), 1.0 + alpha
    return mass_q**a / a - mass_q * mass_p**alpha + alpha * mass_p**a / a


def _mixture(p: Tensor, q: Tensor, weight: float, floor: float) -> Tensor:
    """log(w p + (1 - w) q), finite where both are 0."""
    return torch.logaddexp(_finite(p, floor) + math.log(weight), _finite(q, floor) + math.log1p(-weight))


def _finite(logprobs: Tensor, floor: float) -> Tensor:
    return logprobs.clamp(min=4 * floor)
