"""Signals on the sampled token, for rewards and policy-gradient losses.

With l = log p(y) - log q(y) on a token y ~ q (teacher p, student q, nats), the loss is -sg(A) * log q(y):
A = l has the gradient of KL(q||p), A = e^l - 1 that of KL(p||q), and their mixture that of the mixture. For any
divergence sum_v g(q, p), A = -dg/dq up to a constant. Sources: Thinking Machines 2025, "On-Policy Distillation";
the expectations are enumerated in tests/objectives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from objectives.divergence import LINEAR, Family

Clip = float | tuple[float, float] | None  # nats on l: c is [-c, c]
MAX_LOG_RATIO = 20.0  # nats; keeps e^l finite without a clip


def log_ratio_signal(
    student_logprob: Tensor,
    teacher_logprob: Tensor,
    reverse_weight: float,
    clip: Clip = None,
) -> Tensor:
    """A = lambda * l + (1 - lambda) * (e^l - 1), detached, for the loss -A * log q.

    student_logprob, teacher_logprob: [...], of the sampled token, nats. `clip` (low, high), or c for
    (-c, c), bounds l first; raises ValueError unless low < high.
    Returns [...]; its mean over y ~ q is -lambda * KL(q||p) when nothing is clipped.
    """
    return family_signal(student_logprob, teacher_logprob, reverse_weight, LINEAR, clip)


def family_signal(
    student_logprob: Tensor,
    teacher_logprob: Tensor,
    reverse_weight: float,
    family: Family,
    clip: Clip = None,
) -> Tensor:
    """A of a family's divergence, 0 where student and teacher agree; detached. [...] -> [...].

    jsd (lambda = b): (1 - b) log(b r + 1 - b), r = e^l. skew: lambda (log u + a/u - a) +
    (1 - lambda) (1 - a) (r/(a r + 1 - a) - 1), u = (1 - a) r + a. power: p^a - q^a, unclipped.
    """
    lam, alpha = reverse_weight, family.alpha
    ratio = clipped_log_ratio(student_logprob, teacher_logprob, clip)
    if family.name == "power":
        return ((alpha * teacher_logprob).exp() - (alpha * student_logprob).exp()).detach()
    if family.name == "linear" or (family.name == "jsd" and lam in (0.0, 1.0)):
        return lam * ratio + (1.0 - lam) * torch.expm1(ratio.clamp(max=MAX_LOG_RATIO))
    r = ratio.clamp(max=MAX_LOG_RATIO).exp()
    if family.name == "jsd":
        return torch.log1p(lam * (r - 1.0)) / (lam if family.unit else 1.0 / (1.0 - lam))
    u = (1.0 - alpha) * r + alpha
    forward = (1.0 - alpha) * (r / (alpha * r + 1.0 - alpha) - 1.0)
    return lam * (u.log() + alpha / u - alpha) + (1.0 - lam) * forward


def expected_signal(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    reverse_weight: float,
    family: Family,
    clip: Clip = None,
) -> Tensor:
    """E_q[A] at each prefix, [..., V] -> [...]: the exact baseline of the clipped signal, detached.

    Unclipped and linear it is -lambda KL(q||p). A baseline leaves the mean gradient unchanged (vOPD, arXiv 2605.07865).
    """
    signal = family_signal(student_logprobs, teacher_logprobs, reverse_weight, family, clip)
    mass = student_logprobs.detach().exp()
    return (mass * signal.masked_fill(mass == 0, 0.0)).sum(-1)


def clipped_log_ratio(student_logprob: Tensor, teacher_logprob: Tensor, clip: Clip = None) -> Tensor:
    """l = log p - log q, detached, inside `clip`. [...] -> [...], nats. Raises ValueError unless low < high."""
    ratio = (teacher_logprob - student_logprob).detach()
    if clip is None:
        return ratio
    low, high = clip if isinstance(clip, tuple | list) else (-clip, clip)
    if not low < high:
        raise ValueError(
            f"clip {clip!r} is no interval; give a positive number of nats, or (low, high) with low < high"
        )
    return ratio.clamp(low, high)


def k2(student_logprob: Tensor, teacher_logprob: Tensor) -> Tensor:
    """l^2 / 2 with its graph: in the loss it has the gradient of KL(q||p) for y ~ q. [...] -> [...], nats^2."""
    return 0.5 * (student_logprob - teacher_logprob.detach()).square()


def k3(student_logprob: Tensor, teacher_logprob: Tensor) -> Tensor:
    """e^l - 1 - l >= 0 with its graph: an unbiased estimate of KL(q||p), but in the loss the gradient of KL(p||q).

    Schulman 2020, "Approximating KL Divergence". [...] -> [...], nats.
    """
    ratio = (teacher_logprob.detach() - student_logprob).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(ratio) - ratio
