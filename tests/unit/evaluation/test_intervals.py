"""Intervals against what defines them: Wilson's roots, the distribution of a resampled mean, and their coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from orchestrator.evaluation.intervals import Z, bootstrap, interval, wilson


@pytest.mark.parametrize(("successes", "trials"), [(1, 3), (17, 31), (299, 300), (5, 10_000)])
def test_the_bounds_of_wilson_are_the_roots_of_the_score_equation(successes: int, trials: int) -> None:
    for bound in wilson(successes, trials):
        assert abs(successes / trials - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / trials), rel=1e-9)


def test_wilson_at_the_ends_is_closed_and_not_empty() -> None:
    for trials in (1, 2, 40):
        edge = Z * Z / (trials + Z * Z)
        assert wilson(0, trials) == (0.0, pytest.approx(edge))
        assert wilson(trials, trials) == (pytest.approx(1 - edge), 1.0)
    for wrong in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson(*wrong)


def test_the_bootstrap_is_the_distribution_of_all_resamples_of_few_values() -> None:
    values = [0.3, -1.7, 2.5, 0.3]
    means = [sum(drawn) / 4 for drawn in itertools.product(values, repeat=4)]
    low, high = bootstrap(values, seed=3, resamples=200_000)
    assert (low, high) == pytest.approx(np.percentile(means, (2.5, 97.5)).tolist(), abs=0.08)


def test_the_bootstrap_covers_the_mean_of_skewed_values_about_as_often_as_it_says() -> None:
    rng, covered, trials = np.random.default_rng(11), 0, 300
    for seed in range(trials):
        low, high = bootstrap(rng.beta(0.3, 1.1, 120).tolist(), seed, resamples=400)
        covered += low <= 0.3 / 1.4 <= high
    assert 0.90 < covered / trials < 0.985


def test_an_interval_is_a_function_of_values_and_seed_and_scales_with_the_unit() -> None:
    values = np.random.default_rng(1).normal(5.0, 3.0, 57).tolist()
    first, again, other = interval(values, 7), interval(values, 7), interval(values, 8)
    assert first == again and first != other
    assert first and first.method == "bootstrap" and first.low < first.mean < first.high
    grown = interval([1000.0 * value for value in values], 7)
    assert grown and grown[:3] == pytest.approx([1000.0 * bound for bound in first[:3]])


def test_shares_get_wilson_and_nothing_gets_nothing() -> None:
    assert interval([], 0) is None
    found = interval([1.0, 0.0, 1.0, 1.0], 0)
    assert found == (0.75, *wilson(3, 4), "wilson")
    certain = interval([1.0] * 9, 0)
    assert certain and certain.low < certain.mean == 1.0, "nine passes are no certainty"
    mixed = interval([0.5] * 9, 0)
    assert mixed == (0.5, 0.5, 0.5, "bootstrap")


def test_resamples_of_many_values_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(range(101))
    whole = bootstrap(values, 5)
    monkeypatch.setattr("orchestrator.evaluation.intervals.AT_ONCE", 350)
    assert bootstrap(values, 5) == whole
