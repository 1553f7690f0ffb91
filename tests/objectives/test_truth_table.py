"""The truth table: what each objective's loss, as the learner calls it, is the gradient of. Exact, to 1e-9."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from objectives import signal
from objectives.objective import Tokens
from tests.objectives.enumeration import (
    LAMBDAS,
    VOCABULARY,
    assert_equal,
    every_token,
    gradient,
    kl,
    log_probs,
    logits,
    loss,
    merged,
    mixture,
    recipe,
)

EVERY_LAMBDA = pytest.mark.parametrize("reverse_weight", LAMBDAS)
EVERY_SUPPORT = pytest.mark.parametrize("support", ["sampled", "topk", "full"])
DATA = recipe(target="data", prefix="dataset", reverse_weight=0.0)


@EVERY_LAMBDA
@EVERY_SUPPORT
def test_each_support_has_the_gradient_of_the_mixture(support: str, reverse_weight: float) -> None:
    theta, p = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    config = recipe(support=support, topk=VOCABULARY, reverse_weight=reverse_weight)
    expected = gradient(mixture(q, p, reverse_weight), theta)
    assert_equal(gradient(loss(config, every_token(config, q, p)), theta), expected)


def test_log_ratio_in_the_reward_has_the_gradient_of_reverse_kl() -> None:
    theta, p = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    config = recipe(reverse_weight=1.0)
    closed_form = q.exp() * (q - p - kl(q, p).unsqueeze(-1))
    assert_equal(gradient(loss(config, every_token(config, q, p)), theta), closed_form)


def test_expm1_of_the_log_ratio_in_the_reward_has_the_gradient_of_forward_kl() -> None:
    theta, p = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    config = recipe(reverse_weight=0.0)
    assert_equal(gradient(loss(config, every_token(config, q, p)), theta), q.exp() - p.exp())


@pytest.mark.parametrize("k", [1, 2, 3])
@EVERY_LAMBDA
def test_topk_has_the_gradient_of_the_mixture_over_k_plus_one_categories(reverse_weight: float, k: int) -> None:
    theta, p = logits(0), log_probs(1)
    q, top = theta.log_softmax(-1), p.topk(k).indices
    config = recipe(support="topk", topk=k, reverse_weight=reverse_weight)
    expected = mixture(merged(q, top), merged(p, top), reverse_weight)
    computed = loss(config, every_token(config, q, p))
    assert_equal(computed, expected.sum())
    assert_equal(gradient(computed, theta), gradient(expected, theta))


def test_cross_entropy_is_forward_kl_to_the_data_up_to_its_entropy() -> None:
    theta, data = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    computed = loss(DATA, every_token(DATA, q, data, mu=data))
    entropy = -(data.exp() * data).sum()
    assert_equal(computed, kl(data, q).sum() + entropy)
    assert_equal(gradient(computed, theta), gradient(kl(data, q), theta))


def test_cross_entropy_on_one_token_is_exact_forward_kl_to_a_delta() -> None:
    theta = logits(0, prefixes=1)
    q = theta.log_softmax(-1)
    delta = torch.full_like(q, -torch.inf).index_fill(-1, torch.tensor([2]), 0.0)
    exact = recipe(support="full", reverse_weight=0.0)
    computed = loss(DATA, every_token(DATA, q, delta, mu=delta))
    forward = loss(exact, every_token(exact, q, delta))
    assert_equal(computed, forward)
    assert_equal(gradient(computed, theta), gradient(forward, theta))


@EVERY_LAMBDA
@EVERY_SUPPORT
def test_an_outcome_reward_adds_its_policy_gradient(support: str, reverse_weight: float) -> None:
    theta, p, reward = logits(0), log_probs(1), logits(2).detach()
    q = theta.log_softmax(-1)
    config = recipe(support=support, topk=VOCABULARY, reverse_weight=reverse_weight, outcome={"weight": 0.7})
    tokens = replace(every_token(config, q, p), advantage=reward.flatten())
    expected = mixture(q, p, reverse_weight) - 0.7 * (q.exp() * reward).sum(-1)
    assert_equal(gradient(loss(config, tokens), theta), gradient(expected, theta))


@EVERY_LAMBDA
@EVERY_SUPPORT
def test_a_step_down_the_loss_lowers_its_own_kl(support: str, reverse_weight: float) -> None:
    theta, p = logits(0), log_probs(1)
    config = recipe(support=support, topk=3, reverse_weight=reverse_weight)
    top = p.topk(3).indices

    def own_kl(theta: Tensor) -> Tensor:
        q = theta.log_softmax(-1)
        return (
            mixture(merged(q, top), merged(p, top), reverse_weight)
            if support == "topk"
            else mixture(q, p, reverse_weight)
        )

    step = gradient(loss(config, every_token(config, theta.log_softmax(-1), p)), theta)
    assert (own_kl(theta - 0.1 * step) < own_kl(theta)).all()


def test_a_step_down_cross_entropy_lowers_the_kl_from_the_data() -> None:
    theta, data = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    step = gradient(loss(DATA, every_token(DATA, q, data, mu=data)), theta)
    assert (kl(data, (theta - 0.1 * step).log_softmax(-1)) < kl(data, q)).all()


def test_a_step_down_the_outcome_loss_raises_the_mean_reward() -> None:
    theta, reward = logits(0), logits(2).detach()
    q = theta.log_softmax(-1)
    config = recipe(outcome={"weight": 1.0})
    tokens = replace(every_token(config, q, q.detach()), advantage=reward.flatten())  # p = q: the teacher is silent
    step = gradient(loss(config, tokens), theta)
    assert (((theta - 0.1 * step).softmax(-1) * reward).sum(-1) > (q.exp() * reward).sum(-1)).all()


def _sampled(theta: Tensor, p: Tensor) -> tuple[Tensor, Tokens]:
    q = theta.log_softmax(-1)
    return q, every_token(recipe(), q, p)


def test_k1_in_the_loss_has_no_gradient_so_it_is_refused() -> None:
    theta, p = logits(0), log_probs(1)
    _, tokens = _sampled(theta, p)
    k1 = tokens.student_logprob - tokens.teacher_logprob
    assert_equal(gradient(tokens.weight * k1, theta), torch.zeros_like(theta))


def test_k2_in_the_loss_has_the_gradient_of_reverse_kl() -> None:
    theta, p = logits(0), log_probs(1)
    q, tokens = _sampled(theta, p)
    k2 = 0.5 * (tokens.student_logprob - tokens.teacher_logprob).square()
    assert_equal(gradient(tokens.weight * k2, theta), gradient(kl(q, p), theta))


def test_k3_in_the_loss_has_the_gradient_of_forward_kl() -> None:
    theta, p = logits(0), log_probs(1)
    q, tokens = _sampled(theta, p)
    ratio = tokens.teacher_logprob - tokens.student_logprob
    assert_equal(gradient(tokens.weight * (ratio.expm1() - ratio), theta), gradient(kl(p, q), theta))


def test_k3_in_the_reward_has_the_gradient_of_reverse_minus_forward_so_it_is_refused() -> None:
    theta, p = logits(0), log_probs(1)
    q, tokens = _sampled(theta, p)
    reward = -signal.k3(tokens.student_logprob, tokens.teacher_logprob)
    computed = gradient(tokens.weight * signal.policy_gradient_loss(tokens.student_logprob, reward), theta)
    assert_equal(computed, gradient(kl(q, p) - kl(p, q), theta))
