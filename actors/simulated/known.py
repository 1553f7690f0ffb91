"""What is known of simulated members: how long they sleep, and the numbers that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WEIGHTS = 8  # floats in the simulated model
STUDENT = -1.0  # nats: the log-prob that learner and rollout give to every token
REFERENCE_KL = 0.01  # nats a token


@dataclass(frozen=True)
class Speeds:
    """How long members sleep, in seconds a token."""

    rollout: float = 0.0
    score: float = 0.0
    learn: float = 0.0


def liked(response_ids: Sequence[int]) -> np.ndarray:
    """[T] log-probs of a simulated teacher, -1.0 to -1.4: each depends on all tokens up to its own."""
    return -1.0 - (np.cumsum(response_ids) % 5).astype(np.float32) / 10.0
