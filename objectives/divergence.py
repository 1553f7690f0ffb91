"""Divergences between a student q and a teacher p at one prefix, differentiable in the student.

All log-probs are natural (nats) and float32 or wider; every function maps [..., V] or [..., K] to [...].
Token-level definitions: Zhao et al. 2026 (arXiv 2605.16826); GKD (arXiv 2306.13649) for the mixture of directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOGPROB_FLOOR = -50.0  # nats; a teacher's zero becomes finite in reverse terms


def token_kl(
    student_logprobs: Tensor, teacher_logprobs: Tensor, reverse_weight: float, floor: float = LOGPROB_FLOOR
) -> Tensor:
    """lambda * KL(q||p) + (1 - lambda) * KL(p||q) over the whole vocabulary.

    student_logprobs, teacher_logprobs: [..., V], normalised, nats. Returns [...], nats, >= 0 up to rounding.
    Gradient in the student's logits: lambda * q (log q - log p - KL(q||p)) + (1 - lambda) * (q - p).
    """
    return reverse_weight * reverse_kl(student_logprobs, teacher_logprobs, floor) + (1.0 - reverse_weight) * forward_kl(
        student_logprobs, teacher_logprobs
    )


def support_kl(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    reverse_weight: float,
    tail: str = "bucket",
    floor: float = LOGPROB_FLOOR,
    teacher_tail: Tensor | None = None,
) -> Tensor:
    """The same mixture on a fixed support of K tokens, whose log-probs come from full softmaxes.

    student_logprobs, teacher_logprobs: [..., K], nats. Returns [...], nats. `tail="bucket"` makes all other tokens
    one more outcome: a true KL, never negative, a lower bound of the full one (data-processing inequality).
    `teacher_tail` [...]: the teacher's log(1 - sum), where it is known better than from rounded log-probs.
    Raises ValueError for an unknown tail.
    """
    if tail != "bucket":
        raise ValueError(f"tail {tail!r} is unknown; use 'bucket'")
    if teacher_tail is None:
        teacher = with_tail(teacher_logprobs)
    else:  # rounded on the wire: normalise again, or the sum is no KL
        teacher = torch.cat([teacher_logprobs, teacher_tail.unsqueeze(-1)], dim=-1).log_softmax(-1)
    return token_kl(with_tail(student_logprobs), teacher, reverse_weight, floor)


def reverse_kl(student_logprobs: Tensor, teacher_logprobs: Tensor, floor: float = LOGPROB_FLOOR) -> Tensor:
    """KL(q||p) = sum_v q (log q - log p), [..., V] -> [...]; log p below `floor` counts as `floor`; 0 log 0 = 0."""
    log_ratio = student_logprobs.clamp(min=4 * floor) - teacher_logprobs.clamp(min=floor)
    return (student_logprobs.exp() * log_ratio).sum(-1)


def forward_kl(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(p||q) = sum_v p (log p - log q), [..., V] -> [...]; tokens with p = 0 contribute nothing."""
    absent = teacher_logprobs == -torch.inf
    log_ratio = teacher_logprobs.masked_fill(absent, 0.0) - student_logprobs.masked_fill(absent, 0.0)
    return (teacher_logprobs.exp() * log_ratio).sum(-1)


def entropy(logprobs: Tensor) -> Tensor:
    """-sum_v q log q, [..., V] -> [...], nats; 0 log 0 = 0."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)


def with_tail(logprobs: Tensor) -> Tensor:
    """Append log(1 - sum of the support): [..., K] -> [..., K + 1]. Accurate and differentiable near a full support."""
    inside = torch.logsumexp(logprobs, dim=-1, keepdim=True).clamp(max=-1e-6)
    return torch.cat([logprobs, torch.log(-torch.expm1(inside))], dim=-1)
