"""Importance weights between what sampled a token (mu, the rollout engine) and what is trained on it (q).

Truncated importance sampling, Ionides 2008; for rollout-learner mismatch, Yao et al. 2025 ("TIS").
"""

from __future__ import annotations

import torch
from torch import Tensor


def truncated_importance_weight(student_logprob: Tensor, rollout_logprob: Tensor, cap: float | None) -> Tensor:
    """sg(min(q / mu, C)), [...] -> [...]. `cap` None means weight 1: no correction. Log-probs in nats."""
    if cap is None:
        return torch.ones_like(student_logprob)
    return (student_logprob - rollout_logprob).detach().exp().clamp(max=cap)
