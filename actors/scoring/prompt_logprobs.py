"""Scores from vLLM's prompt log-probs, in whatever form they come."""

from __future__ import annotations

import numpy as np

from actors.wire.records import Score

TAIL_RESOLUTION = 8.0 * float(np.finfo(np.float32).eps)  # 1e-6: rounding error of 1 - sum, for a sum near 1


def score_of(uid: str, sampled: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> Score:
    """The score of a response's T new tokens: `sampled` [T] float32, nats; `ids` int32 and `logprobs` float32 [T, k] of
    the likeliest tokens by rank, with k = 0 for sampled support."""
    if not ids.shape[-1]:
        return Score(uid, sampled)
    tail, floored = tails(logprobs)
    return Score(uid, sampled, ids, logprobs.astype(np.float16), tail, tails_floored=floored)


def tails(logprobs: np.ndarray) -> tuple[np.ndarray, int]:
    """log(1 - sum of the support) of each position, [T, k] -> [T] float32, with the sum's complement floored at
    TAIL_RESOLUTION; and how many positions were floored."""
    outside = 1.0 - np.exp(logprobs.astype(np.float64)).sum(-1)
    floored = int((outside < TAIL_RESOLUTION).sum())
    return np.log(np.maximum(outside, TAIL_RESOLUTION)).astype(np.float32), floored
