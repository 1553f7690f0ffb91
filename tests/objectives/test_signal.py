"""The signal on a sampled token, its clip and its importance weight."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from objectives.signal import MAX_LOG_RATIO, clipped_log_ratio, k3, log_ratio_signal, policy_gradient_loss
from objectives.trust import truncated_importance_weight
from tests.objectives.enumeration import (
    LAMBDAS,
    assert_equal,
    every_token,
    gradient,
    kl,
    log_probs,
    logits,
    loss,
    mixture,
    recipe,
)

EVERY_LAMBDA = pytest.mark.parametrize("reverse_weight", LAMBDAS)


def test_a_token_five_times_likelier_under_the_student_has_l_of_minus_log_5() -> None:
    q, p = torch.tensor(0.25).log(), torch.tensor(0.05).log()
    assert log_ratio_signal(q, p, reverse_weight=1.0).item() == pytest.approx(-math.log(5), abs=1e-6)
    assert log_ratio_signal(q, p, reverse_weight=0.0).item() == pytest.approx(1 / 5 - 1, abs=1e-6)


@EVERY_LAMBDA
def test_the_mean_signal_is_minus_lambda_reverse_kl(reverse_weight: float) -> None:
    q, p = log_probs(0), log_probs(1)
    mean = (q.exp() * log_ratio_signal(q, p, reverse_weight)).sum(-1)
    assert_equal(mean, -reverse_weight * kl(q, p))


@EVERY_LAMBDA
def test_the_signal_is_linear_in_lambda(reverse_weight: float) -> None:
    q, p = log_probs(0), log_probs(1)
    ends = reverse_weight * log_ratio_signal(q, p, 1.0) + (1 - reverse_weight) * log_ratio_signal(q, p, 0.0)
    assert_equal(log_ratio_signal(q, p, reverse_weight), ends)


def test_sampled_k1_and_k3_weighted_by_q_are_exact_reverse_kl() -> None:
    q, p = log_probs(0), log_probs(1)
    assert_equal((q.exp() * -clipped_log_ratio(q, p)).sum(-1), kl(q, p))
    assert_equal((q.exp() * k3(q, p)).sum(-1), kl(q, p))
    assert (k3(q, p) >= 0).all()


def test_signal_and_weight_are_constants_to_the_graph() -> None:
    theta, p, mu = logits(0), log_probs(1), log_probs(2)
    q = theta.log_softmax(-1)
    for constant in (log_ratio_signal(q, p, 0.5), k3(q, p), truncated_importance_weight(q, mu, 2.0)):
        assert not constant.requires_grad
    weight = truncated_importance_weight(q, mu, math.inf)
    assert_equal(gradient(policy_gradient_loss(q, q * weight), q), -(q * weight).detach())


@EVERY_LAMBDA
@pytest.mark.parametrize("low, high", [(-0.5, 0.5), (-1.0, 0.1), (0.2, 0.3)])
def test_clip_bounds_the_ratio_before_the_signal_is_formed(reverse_weight: float, low: float, high: float) -> None:
    q, p = log_probs(0), log_probs(1)
    bounded = (p - q).clamp(low, high)
    assert ((p - q) != bounded).any()
    assert_equal(clipped_log_ratio(q, p, (low, high)), bounded)
    expected = reverse_weight * bounded + (1 - reverse_weight) * (bounded.exp() - 1)
    assert_equal(log_ratio_signal(q, p, reverse_weight, (low, high)), expected)


def test_a_scalar_clip_in_the_recipe_is_a_symmetric_interval_and_acts() -> None:
    theta, p = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    scalar, interval, free = recipe(clip=0.5), recipe(clip=(-0.5, 0.5)), recipe()
    step, same, unclipped = (gradient(loss(c, every_token(c, q, p)), theta) for c in (scalar, interval, free))
    clipped_reward = policy_gradient_loss(q, (p - q).clamp(-0.5, 0.5))
    assert_equal(step, gradient(q.detach().exp() * clipped_reward, theta))
    assert_equal(step, same)
    assert (step - unclipped).abs().max() > 1e-3


def test_without_a_clip_the_forward_signal_stays_finite() -> None:
    ratio = torch.tensor([MAX_LOG_RATIO + 100.0])
    assert_equal(log_ratio_signal(-ratio, torch.zeros(1), 0.0), torch.tensor([MAX_LOG_RATIO]).expm1())


@EVERY_LAMBDA
def test_an_untruncated_weight_makes_the_mean_over_mu_the_on_policy_gradient(reverse_weight: float) -> None:
    theta, p, mu = logits(0), log_probs(1), log_probs(2)
    q = theta.log_softmax(-1)
    config = recipe(reverse_weight=reverse_weight, truncation=math.inf)
    computed = gradient(loss(config, every_token(config, q, p, mu)), theta)
    assert_equal(computed, gradient(mixture(q, p, reverse_weight), theta))


def test_an_untruncated_weight_makes_the_mean_over_mu_the_on_policy_outcome_gradient() -> None:
    theta, reward, mu = logits(0), logits(1).detach(), log_probs(2)
    q = theta.log_softmax(-1)
    config = recipe(outcome={"weight": 1.0}, truncation=math.inf)
    silent = every_token(config, q, q.detach(), mu)  # p = q
    computed = gradient(loss(config, replace(silent, advantage=reward.flatten())), theta)
    assert_equal(computed, gradient(-q.exp() * reward, theta))


@pytest.mark.parametrize("cap", [0.5, 1.0, 2.0])
def test_the_cap_bounds_the_weight_and_mu_times_it_is_the_lesser_of_q_and_cap_mu(cap: float) -> None:
    theta, p, mu = logits(0), log_probs(1), log_probs(2)
    q = theta.log_softmax(-1)
    weight = truncated_importance_weight(q, mu, cap)
    assert weight.max() == cap
    mass = torch.minimum(q.exp(), cap * mu.exp()).detach()
    assert_equal(mu.exp() * weight, mass)
    config = recipe(truncation=cap)
    expected = gradient(mass * policy_gradient_loss(q, p - q), theta)
    assert_equal(gradient(loss(config, every_token(config, q, p, mu)), theta), expected)


def test_no_cap_means_no_correction() -> None:
    q, mu = log_probs(0), log_probs(2)
    assert_equal(truncated_importance_weight(q, mu, None), torch.ones_like(q))
