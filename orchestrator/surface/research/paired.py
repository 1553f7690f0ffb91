"""The mean of paired differences over seeds and prompts, and its interval at 95%. Pure: arrays in, numbers out.

A difference d[s, p] of seed s on prompt p is thought of as mean + seed[s] + prompt[p] + rest[s, p]. Seeds and prompts
are both samples: other seeds, and other prompts, are asked about. What the rest adds is in the spread between seeds.

- Prompts are drawn with replacement (Efron 1979), their effects shrunk so that the rest is not counted twice
  (Davison & Hinkley 1997, section 3.8): by sqrt(1 - MS_rest / MS_prompts) of the two-way analysis of variance.
- Seeds are too few for that: draws of three values never leave them, and cover far less than 95%. The error of their
  mean is drawn from Student's t with their number less one degrees of freedom.

The interval is the percentiles of the sum of both. With two seeds it is wide, as it must be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
AT_ONCE = 1_000_000  # draws that are held in memory, 8 bytes each
LEAST = 2  # seeds, and prompts where there are any: of one there is no spread


@dataclass(frozen=True)
class Paired:
    """`mean` of the differences over `seeds` and `prompts`, with `low` and `high`; these are None where `why` says
    why there is no interval. `prompts` is None where a value is of a whole run, and not of its prompts."""

    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    prompts: int | None
    why: str | None = None

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


def paired(differences: np.ndarray, of_prompts: bool, seed: int = 0) -> Paired:
    """The mean of `differences` [seeds, prompts] and its interval; [seeds, 1] where they are not `of_prompts`. The
    same seed gives the same bounds. Raises ValueError for an array of another shape, or a value that is no number."""
    given = np.asarray(differences, np.float64)
    if given.ndim != 2 or not given.size or not np.isfinite(given).all():
        raise ValueError(f"differences of shape {given.shape} are no finite [seeds, prompts]")
    seeds, prompts = given.shape
    mean, counted = float(given.mean()), prompts if of_prompts else None
    if why := _too_few(seeds, counted):
        return Paired(mean, None, None, seeds, counted, why)
    rng = np.random.default_rng(seed)
    errors = _of_seeds(given, rng)
    if of_prompts:
        errors = errors + _of_prompts(given, rng)
    outside = 100.0 * (1.0 - CONFIDENCE) / 2.0
    low, high = (mean + np.percentile(errors, (outside, 100.0 - outside))).tolist()
    return Paired(mean, low, high, seeds, counted)


def none(why: str, seeds: int = 0) -> Paired:
    """A comparison that cannot be made."""
    return Paired(None, None, None, seeds, None, why)


def _too_few(seeds: int, prompts: int | None) -> str | None:
    if seeds < LEAST:
        return "one seed: how much seeds differ is unknown; run both arms with more"
    if prompts is not None and prompts < LEAST:
        return "one prompt: how much prompts differ is unknown; evaluate on more"
    return None


def _of_seeds(given: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Errors of the mean over seeds, [RESAMPLES]; the rest is in them, as a mean over prompts."""
    seeds = len(given)
    error = given.mean(axis=1).std(ddof=1) / np.sqrt(seeds)
    return error * rng.standard_t(seeds - 1, RESAMPLES)


def _of_prompts(given: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Errors of the mean over prompts, [RESAMPLES]. One prompt less than there are is drawn, so that their variance is
    that of the mean."""
    prompts = given.shape[1]
    effects = (given.mean(axis=0) - given.mean()) * _shrunk(given)
    rows, found = max(1, AT_ONCE // prompts), []
    for first in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, prompts, (min(rows, RESAMPLES - first), prompts - 1))
        found.append(effects[drawn].mean(axis=1))
    return np.concatenate(found)


def _shrunk(given: np.ndarray) -> float:
    """The share of the spread of the prompts' means that is the prompts' own, as a factor of a deviation."""
    seeds, prompts = given.shape
    of_seeds, of_prompts = given.mean(axis=1, keepdims=True), given.mean(axis=0, keepdims=True)
    between = seeds * float(np.square(of_prompts - given.mean()).sum()) / (prompts - 1)
    rest = float(np.square(given - of_seeds - of_prompts + given.mean()).sum()) / ((seeds - 1) * (prompts - 1))
    return float(np.sqrt(max(0.0, 1.0 - rest / between))) if between > 0.0 else 0.0
