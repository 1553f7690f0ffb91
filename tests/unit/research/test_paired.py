"""Intervals of paired differences on synthetic runs, whose true difference is known."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.surface.research.paired import Paired, paired

TRUTH, TRIALS = 0.3, 120


def synthetic(rng: np.random.Generator, seeds: int, prompts: int, spread: tuple[float, float, float]) -> np.ndarray:
    """Differences whose mean over all seeds and prompts is TRUTH. `spread`: of seeds, prompts and the rest."""
    of_seeds, of_prompts, rest = spread
    return (
        TRUTH
        + of_seeds * rng.standard_normal((seeds, 1))
        + of_prompts * rng.standard_normal((1, prompts))
        + rest * rng.standard_normal((seeds, prompts))
    )


def coverage(seeds: int, prompts: int, spread: tuple[float, float, float], of_prompts: bool = True) -> float:
    rng = np.random.default_rng(11)
    found = [paired(synthetic(rng, seeds, prompts, spread), of_prompts) for _ in range(TRIALS)]
    return sum(one.low <= TRUTH <= one.high for one in found if one.low is not None and one.high is not None) / TRIALS


@pytest.mark.parametrize(
    ("seeds", "prompts", "spread"),
    [
        (3, 40, (0.5, 0.5, 1.0)),
        (3, 40, (0.5, 0.0, 0.1)),  # seeds alone
        (5, 40, (0.0, 1.0, 0.2)),  # prompts alone
        (4, 60, (0.0, 0.0, 1.0)),  # neither: what is drawn anew each time
        (2, 40, (0.3, 0.3, 0.3)),
        (10, 20, (0.3, 0.3, 1.0)),
    ],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(
    seeds: int, prompts: int, spread: tuple[float, float, float]
) -> None:
    assert 0.91 <= coverage(seeds, prompts, spread) <= 1.0


def test_seeds_alone_are_covered_where_no_prompt_has_a_value() -> None:
    assert 0.92 <= coverage(3, 1, (0.4, 0.0, 0.0), of_prompts=False) <= 0.98


def test_the_interval_is_no_wider_than_it_must_be() -> None:
    """Ten seeds and 100 prompts: the half-width is close to that of the known variance."""
    rng, spread = np.random.default_rng(3), (0.3, 0.5, 1.0)
    widths = [bound.high - bound.low for bound in (paired(synthetic(rng, 10, 100, spread), True) for _ in range(60))]
    exact = 2 * 1.96 * np.sqrt(0.3**2 / 10 + 0.5**2 / 100 + 1.0 / 1000)
    assert 0.9 < np.mean(widths) / exact < 1.3


def test_more_seeds_make_it_narrower() -> None:
    rng = np.random.default_rng(5)
    wide, narrow = (paired(synthetic(rng, n, 30, (0.5, 0.1, 0.5)), True) for n in (3, 30))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)  # type: ignore[operator]
    assert narrow.differs


@pytest.mark.parametrize(
    ("shape", "of_prompts", "why"), [((1, 50), True, "one seed"), ((1, 1), False, "one seed"), ((3, 1), True, "prompt")]
)
def test_of_one_there_is_no_interval(shape: tuple[int, int], of_prompts: bool, why: str) -> None:
    found = paired(np.full(shape, 0.5), of_prompts)
    assert (found.mean, found.low, found.high, found.differs) == (0.5, None, None, False)
    assert why in str(found.why)


def test_equal_runs_differ_by_nothing() -> None:
    assert paired(np.zeros((3, 8)), True) == Paired(0.0, 0.0, 0.0, 3, 8)


def test_the_same_seed_gives_the_same_bounds() -> None:
    given = synthetic(np.random.default_rng(1), 3, 9, (1.0, 1.0, 1.0))
    assert paired(given, True, 4) == paired(given, True, 4) != paired(given, True, 5)


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3), np.array([[0.0, np.nan]]), np.array([[np.inf]])])
def test_what_is_no_difference_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="differences"):
        paired(bad, True)
