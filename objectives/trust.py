"""Trust regions, which bound how far one batch moves the policy, and importance weights of off-policy tokens.

Three policies: mu sampled the token (the rollout engine), q_old is the learner at the start of the step, q the learner
now. w = q/q_old is what a trust region clips or masks; min(q_old/mu, C) corrects the mismatch of engine and version.
With one update a batch q_old = q: no clip acts, and the weight is min(q/mu, C) alone.

PPO (arXiv 1707.06347), DAPO (2503.14476), GSPO (2507.18071), CISPO (2506.13585), truncated importance sampling
(Ionides 2008; Yao et al. 2025). The probability mask is that of prime-rl.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """Per-token losses [N], and where the trust region removes the gradient, [N] bool."""

    loss: Tensor
    held: Tensor


def truncated_importance_weight(student_logprob: Tensor, rollout_logprob: Tensor, cap: float | None) -> Tensor:
    """sg(min(q / mu, C)), [...] -> [...]. `cap` None means weight 1: no correction. Log-probs in nats."""
    if cap is None:
        return torch.ones_like(student_logprob)
    return (student_logprob - rollout_logprob).detach().clamp(max=20.0).exp().clamp(max=cap)


def policy_gradient(logprob: Tensor, advantage: Tensor) -> Surrogate:
    """-sg(A) log q: REINFORCE, equal to every surrogate below at w = 1. [N]"""
    return Surrogate(-advantage.detach() * logprob, torch.zeros_like(logprob, dtype=torch.bool))


def unclipped(logprob: Tensor, old_logprob: Tensor, advantage: Tensor) -> Surrogate:
    """-w A: unbounded importance sampling. [N]"""
    return Surrogate(-ratio_of(logprob, old_logprob) * advantage.detach(), torch.zeros_like(logprob, dtype=torch.bool))


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Surrogate:
    """-min(w A, clip(w, 1 - low, 1 + high) A): PPO; DAPO with high > low. [N]"""
    advantage = advantage.detach()
    free, bound = ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage
    return Surrogate(-torch.minimum(free, bound), bound < free)


def capped(logprob: Tensor, old_logprob: Tensor, advantage: Tensor, low: float, high: float) -> Surrogate:
    """-sg(clip(w, 1 - low, 1 + high)) A log q: CISPO; the weight is bounded, no token loses its gradient. [N]"""
    ratio = ratio_of(logprob, old_logprob).detach()
    weight = ratio.clamp(1.0 - low, 1.0 + high)
    return Surrogate(-weight * advantage.detach() * logprob, weight != ratio)


def masked(logprob: Tensor, old_logprob: Tensor, advantage: Tensor, delta: float) -> Surrogate:
    """-w A, and 0 where q has already moved by more than `delta` (a probability) in the direction of A. [N]"""
    moved = (logprob.exp() - old_logprob.exp()).detach()
    held = (moved * advantage.sign() > delta).detach()
    return Surrogate(torch.where(held, 0.0, -ratio_of(logprob, old_logprob) * advantage.detach()), held)


def sequence_ratio(logprob: Tensor, old_logprob: Tensor, on: Tensor) -> Tensor:
    """GSPO's s = exp(mean of log w over one response's loss tokens), on each of its tokens; [T] -> [T].

    The value is the sequence's, the gradient each token's own (GSPO-token), which sums to the gradient of s.
    """
    mean = ((logprob - old_logprob).detach() * on).sum() / on.sum().clamp(min=1)
    return mean.clamp(max=20.0).exp() * (logprob - logprob.detach()).exp()


def ratio_of(logprob: Tensor, old_logprob: Tensor) -> Tensor:
    """w = q / q_old with its graph, [N]; finite for any log-probs."""
    return (logprob - old_logprob).clamp(max=20.0).exp()
