"""The truth table of OBJECTIVES.md at one prefix: what each way to use the log-ratio is the gradient of, to 1e-9."""

from __future__ import annotations

import pytest
import torch

from tests.objectives import families
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
    mixture,
    recipe,
    step,
)

EVERY_LAMBDA = pytest.mark.parametrize("reverse_weight", LAMBDAS)
EVERY_SUPPORT = pytest.mark.parametrize("support", ["sampled", "topk", "full"])
P = log_probs(1)


@EVERY_LAMBDA
@EVERY_SUPPORT
def test_each_support_has_the_gradient_of_the_mixture(support: str, reverse_weight: float) -> None:
    theta = logits(0)
    config = recipe(support=support, topk=VOCABULARY, reverse_weight=reverse_weight)
    assert_equal(step(config, theta, P), gradient(mixture(theta.log_softmax(-1), P, reverse_weight), theta))


@EVERY_LAMBDA
@pytest.mark.parametrize("support", ["topk", "full"])
def test_a_whole_support_has_the_value_of_the_mixture(support: str, reverse_weight: float) -> None:
    q = logits(0).log_softmax(-1)
    config = recipe(support=support, topk=VOCABULARY, reverse_weight=reverse_weight)
    assert_equal(loss(config, *every_token(config, q, P)), mixture(q, P, reverse_weight).sum())


@EVERY_LAMBDA
def test_the_mean_of_the_signal_is_minus_lambda_times_reverse_kl(reverse_weight: float) -> None:
    q = logits(0).log_softmax(-1)
    config = recipe(reverse_weight=reverse_weight)
    student, tokens = every_token(config, q, P)
    in_logprob = gradient(loss(config, student, tokens), student)  # of -q(y) A(y) log q(y)
    signal = -in_logprob.gather(-1, tokens.token_ids.unsqueeze(-1)).reshape(q.shape)
    assert_equal(signal.sum(-1), -reverse_weight * kl(q, P))


def test_log_ratio_in_the_reward_has_the_closed_form_of_reverse_kl() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    assert_equal(step(recipe(), theta, P), q.exp() * (q - P - kl(q, P).unsqueeze(-1)))


def test_expm1_of_the_log_ratio_in_the_reward_has_the_closed_form_of_forward_kl() -> None:
    theta = logits(0)
    assert_equal(step(recipe(reverse_weight=0.0), theta, P), theta.softmax(-1) - P.exp())


def test_k2_in_the_loss_has_the_gradient_of_reverse_kl() -> None:
    theta = logits(0)
    expected = gradient(kl(theta.log_softmax(-1), P), theta)
    assert_equal(step(recipe(estimator="k2_in_loss"), theta, P), expected)


def test_k3_in_the_loss_has_the_gradient_of_forward_kl() -> None:
    theta = logits(0)
    expected = gradient(kl(P, theta.log_softmax(-1)), theta)
    assert_equal(step(recipe(estimator="k3_in_loss"), theta, P), expected)


def test_k1_in_the_loss_has_no_gradient_though_its_mean_is_reverse_kl() -> None:
    theta = logits(0)
    config = recipe(estimator="k1_in_loss")
    assert_equal(step(config, theta, P), torch.zeros_like(theta))
    q = theta.log_softmax(-1)
    assert_equal(loss(config, *every_token(config, q, P)), kl(q, P).sum())


def test_k3_in_the_reward_has_the_gradient_of_reverse_minus_forward() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    assert_equal(step(recipe(estimator="k3_in_reward"), theta, P), gradient(kl(q, P) - kl(P, q), theta))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 2.0])
def test_the_difference_of_powers_in_the_reward_has_the_gradient_of_the_power_family(alpha: float) -> None:
    theta = logits(0)
    config = recipe(family="power", alpha=alpha)
    assert_equal(step(config, theta, P), gradient(families.power(theta.log_softmax(-1), P, alpha), theta))


@pytest.mark.parametrize("estimator, kept", [("k2_in_loss", "reverse"), ("k3_in_loss", "forward")])
def test_k2_and_k3_in_the_loss_need_tokens_drawn_from_the_student(estimator: str, kept: str) -> None:
    theta, mu = logits(0), log_probs(2)
    q = theta.log_softmax(-1)
    config = recipe(estimator=estimator, trust={"truncation": None})
    expected = gradient(kl(q, P) if kept == "reverse" else kl(P, q), theta)
    assert (step(config, theta, P, mu=mu) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("estimator, reverse", [("k2_in_loss", True), ("k3_in_loss", False)])
@pytest.mark.parametrize("later_pass", [False, True])
def test_with_their_ratio_k2_and_k3_in_the_loss_hold_for_tokens_of_another_policy(
    estimator: str, reverse: bool, later_pass: bool
) -> None:
    theta, mu = logits(0), log_probs(2)
    q = theta.log_softmax(-1)
    config = recipe(estimator=estimator, trust={"truncation": 1e9})
    old = log_probs(3).flatten() if later_pass else None  # the policy has left the one that the step began with
    expected = gradient(kl(q, P) if reverse else kl(P, q), theta)
    assert_equal(step(config, theta, P, mu=mu, old_logprob=old), expected)


WEIGHTS = {"maths": 0.5, "code": 0.3, "chat": 0.2}
TEACHERS = {name: log_probs(10 + i) for i, name in enumerate(WEIGHTS)}


@EVERY_LAMBDA
@EVERY_SUPPORT
def test_several_teachers_have_the_weighted_sum_of_their_gradients(support: str, reverse_weight: float) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    config = recipe(target={"maths": 0.7, "code": 1.6}, support=support, topk=VOCABULARY, reverse_weight=reverse_weight)
    expected = 0.7 * mixture(q, TEACHERS["maths"], reverse_weight) + 1.6 * mixture(q, TEACHERS["code"], reverse_weight)
    models = {name: TEACHERS[name] for name in ("maths", "code")}
    assert_equal(step(config, theta, models), gradient(expected, theta))


@EVERY_SUPPORT
def test_several_teachers_in_reverse_have_the_gradient_of_kl_to_their_normalised_geometric_mean(support: str) -> None:
    theta = logits(0)
    config = recipe(target=WEIGHTS, support=support, topk=VOCABULARY)
    geometric = torch.stack([w * TEACHERS[name] for name, w in WEIGHTS.items()]).sum(0).log_softmax(-1)
    assert_equal(step(config, theta, TEACHERS), gradient(kl(theta.log_softmax(-1), geometric), theta))


@EVERY_SUPPORT
def test_several_teachers_forward_have_the_gradient_of_kl_from_their_arithmetic_mixture(support: str) -> None:
    theta = logits(0)
    config = recipe(target=WEIGHTS, support=support, topk=VOCABULARY, reverse_weight=0.0)
    arithmetic = torch.stack([w * TEACHERS[name].exp() for name, w in WEIGHTS.items()]).sum(0).log()
    assert_equal(step(config, theta, TEACHERS), gradient(kl(arithmetic, theta.log_softmax(-1)), theta))


@EVERY_LAMBDA
@EVERY_SUPPORT
def test_a_step_down_the_loss_lowers_its_divergence(support: str, reverse_weight: float) -> None:
    theta = logits(0)
    config = recipe(support=support, topk=VOCABULARY, reverse_weight=reverse_weight)
    moved = (theta - 0.1 * step(config, theta, P)).log_softmax(-1)
    assert (mixture(moved, P, reverse_weight) < mixture(theta.log_softmax(-1), P, reverse_weight)).all()
