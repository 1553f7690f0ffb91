"""Confidence intervals of means over prompts, at 95%. Prompts are the sample: what a model does on others is asked for.

Values that are all 0 or 1 are a proportion and get Wilson's interval, which is not empty where all are equal; others
get the percentile bootstrap over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

CONFIDENCE = 0.95
Z = 1.959963984540054  # the normal quantile of (1 + CONFIDENCE) / 2
RESAMPLES = 2000
AT_ONCE = 1_000_000  # draws that are held in memory, 8 bytes each


class Interval(NamedTuple):
    """The mean of the values, its bounds, and where they come from."""

    mean: float
    low: float
    high: float
    method: Literal["wilson", "bootstrap"]


def interval(values: Sequence[float], seed: int) -> Interval | None:
    """The interval of a mean of values, one a prompt; None without any. The same seed gives the same bounds."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if all(value in (0.0, 1.0) for value in values):
        return Interval(mean, *wilson(round(sum(values)), len(values)), "wilson")
    return Interval(mean, *bootstrap(values, seed), "bootstrap")


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927): all p with |successes/trials - p| <= Z sqrt(p (1 - p) / trials).
    Raises ValueError unless 0 <= successes <= trials and trials > 0."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} of {trials} is no proportion")
    share, square = successes / trials, Z * Z / trials
    centre, half = share + square / 2, Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    low, high = (centre - half) / (1 + square), (centre + half) / (1 + square)
    return (0.0 if not successes else max(0.0, low), 1.0 if successes == trials else min(1.0, high))


def bootstrap(
    values: Sequence[float], seed: int, resamples: int = RESAMPLES, weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """Percentiles of the means, by `weights` if there are any, of `resamples` samples of the values, drawn with
    replacement (Efron 1979)."""
    given, rng = np.asarray(values, np.float64), np.random.default_rng(seed)
    weight = np.ones(len(given)) if weights is None else np.asarray(weights, np.float64)
    rows = max(1, AT_ONCE // len(given))
    means: list[np.ndarray] = []
    for first in range(0, resamples, rows):
        drawn = rng.integers(0, len(given), (min(rows, resamples - first), len(given)))
        means.append((given[drawn] * weight[drawn]).sum(axis=1) / weight[drawn].sum(axis=1))
    outside = 100.0 * (1.0 - CONFIDENCE) / 2.0
    low, high = np.percentile(np.concatenate(means), (outside, 100.0 - outside)).tolist()
    return low, high
