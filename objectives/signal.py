"""Signals on the sampled token: what a reward or a policy-gradient loss is made of.

With l = log p(y) - log q(y) on a token y ~ q (teacher p, student q, nats), the loss is -sg(A) * log q(y):
A = l has the gradient of KL(q||p), A = e^l - 1 that of KL(p||q), and their mixture that of the mixture.
Sources: Thinking Machines 2025, "On-Policy Distillation"; the expectations are enumerated in tests/objectives.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # nats; keeps e^l finite where no clip is asked for


def log_ratio_signal(
    student_logprob: Tensor,
    teacher_logprob: Tensor,
    reverse_weight: float,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """A = lambda * l + (1 - lambda) * (e^l - 1), detached, for the loss -A * log q.

    student_logprob, teacher_logprob: [...], of the sampled token, nats. `clip` (low, high) bounds l first.
    Returns [...]; its mean over y ~ q is -lambda * KL(q||p) when nothing is clipped.
    """
    ratio = clipped_log_ratio(student_logprob, teacher_logprob, clip)
    return reverse_weight * ratio + (1.0 - reverse_weight) * torch.expm1(ratio.clamp(max=MAX_LOG_RATIO))


def clipped_log_ratio(
    student_logprob: Tensor, teacher_logprob: Tensor, clip: tuple[float, float] | None = None
) -> Tensor:
    """l = log p - log q, detached, inside `clip`. [...] -> [...], nats."""
    ratio = (teacher_logprob - student_logprob).detach()
    return ratio if clip is None else ratio.clamp(*clip)


def policy_gradient_loss(student_logprob: Tensor, signal: Tensor) -> Tensor:
    """-sg(A) * log q, [...] -> [...]. Its gradient is -A grad log q: minimising it raises tokens with A > 0."""
    return -signal.detach() * student_logprob


def k3(student_logprob: Tensor, teacher_logprob: Tensor) -> Tensor:
    """e^l - 1 - l >= 0, an unbiased estimate of KL(q||p) for reading, never for a loss. [...] -> [...], nats."""
    ratio = clipped_log_ratio(student_logprob, teacher_logprob).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(ratio) - ratio
