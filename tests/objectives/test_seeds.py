"""The numbers of the two texts that this project began with."""

from __future__ import annotations

import math

import pytest
import torch

from tests.objectives.enumeration import assert_equal, every_token, kl, log_of, log_probs, loss, metrics, recipe

BIASED, FAIR = log_of(0.7, 0.3).unsqueeze(0), log_of(0.5, 0.5).unsqueeze(0)


def test_kl_of_a_biased_from_a_fair_coin_is_0_0823() -> None:
    exact = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    assert exact == pytest.approx(0.0823, abs=5e-5)
    reverse, forward = recipe(support="full"), recipe(support="full", reverse_weight=0.0)
    assert loss(reverse, *every_token(reverse, BIASED, FAIR)).item() == pytest.approx(exact, abs=1e-12)
    assert loss(forward, *every_token(forward, FAIR, BIASED)).item() == pytest.approx(exact, abs=1e-12)


def test_the_other_direction_of_the_coins_is_another_number() -> None:
    forward = recipe(support="full", reverse_weight=0.0)
    assert loss(forward, *every_token(forward, BIASED, FAIR)).item() == pytest.approx(0.0872, abs=5e-5)


def test_certainly_at_0_25_under_the_student_and_0_05_under_the_teacher_has_k1_of_log_5() -> None:
    student, teacher = log_of(0.25, 0.75).unsqueeze(0), log_of(0.05, 0.95).unsqueeze(0)
    rows, tokens = every_token(recipe(), student, teacher)
    assert metrics(recipe(), rows[:1], tokens[:1])["k1"].item() == pytest.approx(math.log(5), abs=1e-12)
    assert math.log(5) == pytest.approx(1.61, abs=5e-3)


@pytest.mark.parametrize("reading", ["k1", "k3"])
def test_the_mean_of_k1_and_of_k3_over_samples_converges_to_the_full_kl(reading: str) -> None:
    q, p = log_probs(0, 1, 50), log_probs(1, 1, 50)
    exact, errors = kl(q, p).item(), []
    rows, tokens = every_token(recipe(), q, p)
    for n in (100, 10_000, 1_000_000):
        drawn = torch.multinomial(q.exp()[0], n, replacement=True, generator=torch.Generator().manual_seed(0))
        counts = torch.bincount(drawn, minlength=50)
        values = [metrics(recipe(), rows[i : i + 1], tokens[i : i + 1])[reading] for i in range(50)]
        errors.append(abs((torch.stack(values) * counts).sum().item() / n - exact))
    assert errors[-1] < 0.01 * exact and errors[-1] < errors[0]


@pytest.mark.parametrize("reading", ["k1", "k3"])
def test_weighted_by_the_student_k1_and_k3_are_the_full_kl(reading: str) -> None:
    q, p = log_probs(0), log_probs(1)
    rows, tokens = every_token(recipe(), q, p)
    values = [metrics(recipe(), rows[i : i + 1], tokens[i : i + 1])[reading] for i in range(len(tokens))]
    assert_equal((q.exp() * torch.stack(values).reshape(q.shape)).sum(-1), kl(q, p))
