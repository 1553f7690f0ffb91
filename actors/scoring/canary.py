"""Whether a scorer's numbers can be right: fixed texts to score, and what no working model gives."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from actors.wire.records import Score

Tokens = tuple[int, ...]
UNIFORM = 0.99  # of the log of the vocabulary: an entropy above it is that of a model that knows nothing
TOKENS, DISTINCT = 16, 4  # fewer may well be alike: one-token answers, one token again and again
ALIKE = 1e-6  # nats


def canary_texts(vocabulary: int, context: int) -> tuple[Tokens, ...]:
    """Token ids that are always the same for a vocabulary, of up to 32 tokens each: drawn at random, one token again
    and again, ids in their order from both ends, and a short one. None where there are too few tokens for texts."""
    if vocabulary < TOKENS or context < 2:
        return ()
    rng = random.Random(vocabulary)
    texts = [[rng.randrange(vocabulary) for _ in range(length)] for length in (32, 24, 9)]
    texts += [[rng.randrange(vocabulary)] * 12, list(range(16)), list(range(vocabulary - 1, vocabulary - 17, -1))]
    texts.append([rng.randrange(vocabulary) for _ in range(2)])
    return tuple(tuple(text[:context]) for text in texts)


def ways_to_batch(count: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The same texts, by index, in other batches each time: together, each alone, and in two of mixed lengths."""
    every = tuple(range(count))
    return (every,), tuple((i,) for i in every), (every[1::2], every[::-2])


def suspicion_of(scores: Sequence[Score], token_ids: Sequence[int], vocabulary: int) -> str:
    """What no model that works gives for these tokens, in words; empty where there is nothing of it."""
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
