"""Pass@k and Avg@k against enumeration and closed forms, on ugly numbers."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from orchestrator.evaluation.estimates import averages, pass_at_k, passes


@pytest.mark.parametrize("responses", [1, 2, 7])
def test_pass_at_k_is_the_share_of_all_choices_of_k_responses_with_one_that_passes(responses: int) -> None:
    for passed in range(responses + 1):
        outcomes = [True] * passed + [False] * (responses - passed)
        for k in range(1, responses + 1):
            chosen = list(combinations(outcomes, k))
            assert pass_at_k(responses, passed, k) == pytest.approx(sum(map(any, chosen)) / len(chosen), abs=1e-15)


@pytest.mark.parametrize(("responses", "passed", "k"), [(1000, 3, 999), (10_000, 1, 5000), (257, 254, 4), (2000, 7, 1)])
def test_pass_at_k_is_the_closed_form_where_binomial_coefficients_overflow(responses: int, passed: int, k: int) -> None:
    exact = 1 - math.comb(responses - passed, k) / math.comb(responses, k)  # integers of any size, one division
    assert pass_at_k(responses, passed, k) == pytest.approx(exact, rel=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over binomial outcomes is 1 - (1-p)^k, which the plug-in estimate 1 - (1-c/n)^k is not."""
    n, k, p = 6, 4, 0.137
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(weights)) == pytest.approx(truth, rel=1e-12)
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weights)) < truth - 0.02


@pytest.mark.parametrize(("responses", "passed", "k"), [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_what_is_no_estimate_is_refused(responses: int, passed: int, k: int) -> None:
    with pytest.raises(ValueError, match="needs 1 <= k <= responses"):
        pass_at_k(responses, passed, k)


def test_a_response_passes_at_the_bar_and_prompts_with_too_few_responses_are_left_out() -> None:
    rewards = {"a": [1.0, 0.999999, 1.5], "b": [-3.0, 0.0, 0.5], "c": [1.0], "d": []}
    assert passes(rewards, 1, 1.0) == pytest.approx([2 / 3, 0.0, 1.0])
    assert passes(rewards, 2, 1.0) == pytest.approx([1.0, 0.0]), "c and d have no two responses"
    assert passes(rewards, 3, 0.5) == [1.0, 1.0]
    assert averages(rewards) == pytest.approx([3.499999 / 3, -2.5 / 3, 1.0])
