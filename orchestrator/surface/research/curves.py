"""A metric of one run over what the run has spent so far, and its value at a budget. Pure.

Budgets are those of AXES. Between two evaluations a value is interpolated, of each prompt by itself; beyond the first
and the last there is none. A budget that goes back (the KL moved may) counts from where it was first reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

AXES = {
    "steps": "learner steps",
    "tokens": "response tokens sampled for training",
    "gpu_seconds": "wall seconds of steps times GPUs reserved",
    "kl": "KL(student||its starting weights), nats a token",
}
PLACES = 5  # budgets at which runs are compared
OVERALL = 33  # of the mean over a whole range

Budgets = Mapping[str, float | None]  # by axis; None: unknown


@dataclass(frozen=True)
class Point:
    """One evaluation: what the run had spent, and the metric's value of each prompt (key: value), or one value with the
    key ''."""

    budgets: Budgets
    values: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, in the order in which they were made."""

    seed: int
    points: Sequence[Point]

    def prompts(self) -> frozenset[str]:
        """Prompts with a value in every evaluation."""
        return frozenset.intersection(*(frozenset(p.values) for p in self.points)) if self.points else frozenset()

    def known(self, axis: str) -> np.ndarray:
        """The budgets at which the metric is known, ascending, each once."""
        return np.asarray([x for x, _ in self._along(axis)], np.float64)

    def at(self, axis: str, budgets: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Values [budgets, prompts] at budgets within those known. Linear between two evaluations."""
        along = self._along(axis)
        xs = np.asarray([x for x, _ in along], np.float64)
        table = np.asarray([[point.values[p] for p in prompts] for _, point in along], np.float64)
        right = np.clip(np.searchsorted(xs, budgets), 1, max(1, len(xs) - 1))
        left = right - 1
        right = np.minimum(right, len(xs) - 1)
        gap = xs[right] - xs[left]
        share = np.where(gap > 0.0, (budgets - xs[left]) / np.where(gap > 0.0, gap, 1.0), 0.0)
        return table[left] + share[:, None] * (table[right] - table[left])

    def _along(self, axis: str) -> list[tuple[float, Point]]:
        found: list[tuple[float, Point]] = []
        for point in self.points:
            spent = point.budgets.get(axis)
            if spent is not None and (not found or spent > found[-1][0]):
                found.append((float(spent), point))
        return found


def shared(curves: Sequence[Curve], axis: str) -> np.ndarray:
    """Budgets, at most PLACES, at which every curve is known: of steps those that all were evaluated after, else equal
    parts of the common range. Empty where there is no common range."""
    known = [curve.known(axis) for curve in curves]
    if not known or not all(len(xs) for xs in known):
        return np.zeros(0)
    if axis == "steps":
        common = sorted(set.intersection(*(set(xs.tolist()) for xs in known)))
        if len(common) > PLACES:
            common = [common[i] for i in np.linspace(0, len(common) - 1, PLACES).round().astype(int)]
        return np.asarray(common)
    low, high = max(xs[0] for xs in known), min(xs[-1] for xs in known)
    return np.linspace(low, high, PLACES) if high > low else np.zeros(0)


def overall(places: np.ndarray) -> np.ndarray:
    """Budgets over whose values a mean is that over the whole range; empty for less than two places."""
    return np.linspace(places[0], places[-1], OVERALL) if len(places) > 1 else np.zeros(0)
