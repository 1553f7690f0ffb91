"""Checks of a scorer's numbers: fixed texts to score, and scores that no working model gives."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from actors.wire.records import Score

Tokens = tuple[int, ...]
UNIFORM = 0.99  # share of log(vocabulary); a higher mean entropy is that of a model without knowledge
TOKENS, DISTINCT = 16, 4  # fewer tokens, or fewer distinct ones, may well have equal log-probs
ALIKE = 1e-6  # nats


def canary_texts(vocabulary: int, context: int) -> tuple[Tokens, ...]:
    """Texts of 2 to 32 token ids, fixed by the vocabulary: random ids, one id repeated, ascending ids, descending ids.
    Empty if the vocabulary or the context is too small."""
    if vocabulary < TOKENS or context < 2:
        return ()
    rng = random.Random(vocabulary)
    texts = [[rng.randrange(vocabulary) for _ in range(length)] for length in (32, 24, 9)]
    texts += [[rng.randrange(vocabulary)] * 12, list(range(16)), list(range(vocabulary - 1, vocabulary - 17, -1))]
    texts.append([rng.randrange(vocabulary) for _ in range(2)])
    return tuple(tuple(text[:context]) for text in texts)


def ways_to_batch(count: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Ways to batch the texts, by index: all together, each alone, and in two batches of mixed lengths."""
    every = tuple(range(count))
    return (every,), tuple((i,) for i in every), (every[1::2], every[::2][::-1])


def suspicion_of(scores: Sequence[Score], token_ids: Sequence[int], vocabulary: int) -> str:
    """Why no working model gives these scores, in words; empty if one may."""
    if len(token_ids) < TOKENS or len(set(token_ids)) < DISTINCT:
        return ""
    logprobs = np.concatenate([score.logprobs for score in scores])
    if np.ptp(logprobs) <= ALIKE:
        return f"all {len(logprobs)} log-probs are {logprobs[0]:.4f}"
    entropies = [score.entropy_sum for score in scores if score.entropy_sum is not None]
    mean = sum(entropies) / len(logprobs)
    if len(entropies) == len(scores) and mean > UNIFORM * math.log(vocabulary):
        return f"its mean entropy is {mean:.4f} nats, and log {vocabulary} is {math.log(vocabulary):.4f}"
    return ""
