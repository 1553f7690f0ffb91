"""Targets other than one model: data, responses that a reward selects, an extrapolated model, routes; and combines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.advantage import group_advantages
from objectives.objective import slots, teacher_slots
from objectives.schedule import dials_at
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
    step,
)
from tests.objectives.tree import NODES, OUTCOMES, RESPONSE_COUNT, SEQUENCE, log_prob, tree_step

P, BASE = log_probs(1), log_probs(4)
A = logits(3).detach()
EVERY_SUPPORT = pytest.mark.parametrize("support", ["sampled", "topk", "full"])


# --- data ---

SFT = recipe(target="data", prefix="dataset", reverse_weight=0.0)


def test_cross_entropy_is_forward_kl_to_the_data_up_to_its_entropy() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    drawn = torch.zeros(P.numel(), dtype=torch.bool)
    computed = loss(SFT, *every_token(SFT, q, {}, mu=P, drawn=drawn))
    assert_equal(computed, (kl(P, q) - (P.exp() * P).sum(-1)).sum())
    assert_equal(gradient(computed, theta), gradient(kl(P, q), theta))


def test_cross_entropy_on_one_token_is_the_exact_forward_kl_to_a_delta() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    delta = torch.full_like(q, -torch.inf).index_fill(-1, torch.tensor([2]), 0.0).detach()
    exact = recipe(support="full", reverse_weight=0.0)
    computed = loss(SFT, *every_token(SFT, q, {}, mu=delta))
    forward = loss(exact, *every_token(exact, q, delta, mu=P))
    assert_equal(computed, kl(delta, q).sum())
    assert_equal(forward, kl(delta, q).sum())
    assert_equal(gradient(computed, theta), gradient(forward, theta))


def test_rejection_sampling_is_cross_entropy_on_responses_of_positive_advantage() -> None:
    theta = logits(0, NODES, OUTCOMES)
    q = theta.log_softmax(-1)
    config = recipe(target="data", reverse_weight=0.0, outcome={"combine": "gate"})
    advantage = torch.randn(RESPONSE_COUNT, generator=torch.Generator().manual_seed(3)).double()
    advantage[5] = 0.0  # the group's mean is not above itself
    kept = log_prob(q).exp().detach() * (advantage > 0)
    computed = tree_step(config, theta, {}, advantage=advantage[SEQUENCE])
    assert_equal(computed, gradient(-(kept * log_prob(q)).sum(), theta))


# --- extrapolation: p^w base^(1 - w) ---


def extrapolating(weight: float, **axes: Any) -> Any:
    return recipe(extrapolate={"base": "base", "weight": weight}, **axes)


MODELS = {"teacher": P, "base": BASE}


@pytest.mark.parametrize("support", ["sampled", "full"])
def test_extrapolation_at_weight_one_is_distillation(support: str) -> None:
    theta = logits(0)
    assert_equal(step(extrapolating(1.0, support=support), theta, MODELS), step(recipe(support=support), theta, P))


@pytest.mark.parametrize("weight", [0.5, 1.25, 2.0])
@pytest.mark.parametrize("support", ["sampled", "full"])
def test_extrapolation_has_the_gradient_of_kl_to_the_normalised_extrapolated_model(support: str, weight: float) -> None:
    theta = logits(0)
    target = (weight * P + (1 - weight) * BASE).log_softmax(-1)
    expected = gradient(kl(theta.log_softmax(-1), target), theta)
    assert_equal(step(extrapolating(weight, support=support), theta, MODELS), expected)


@pytest.mark.parametrize("reverse_weight", LAMBDAS)
def test_with_the_whole_distribution_every_mixture_is_towards_the_extrapolated_model(reverse_weight: float) -> None:
    theta = logits(0)
    target = (1.5 * P - 0.5 * BASE).log_softmax(-1)
    expected = mixture(theta.log_softmax(-1), target, reverse_weight)
    for baseline in ("none", "exact"):
        config = extrapolating(1.5, support="full", reverse_weight=reverse_weight, baseline=baseline)
        assert_equal(step(config, theta, MODELS), gradient(expected, theta))


def test_the_exact_baseline_centres_the_extrapolated_signal() -> None:
    config = extrapolating(1.5, support="full", baseline="exact")
    student, tokens = every_token(config, logits(0).log_softmax(-1), MODELS)
    in_logprob = gradient(loss(config, student, tokens), student).gather(-1, tokens.token_ids.unsqueeze(-1))
    assert_equal(in_logprob.reshape(P.shape).sum(-1), torch.zeros(len(P)).double())


# --- routes ---


@EVERY_SUPPORT
def test_a_route_takes_the_divergence_to_each_prompts_own_teacher(support: str) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    route = {"field": "subject", "models": {"algebra": "maths", "python": "code", "geometry": "maths"}}
    config = recipe(target=route, support=support, topk=5, reverse_weight=0.4)
    assert teacher_slots(config) == {"routed": 1.0} and slots(config) == {"routed": ("code", "maths")}
    own = torch.cat([P[:2], BASE[2:]])  # the first two prefixes are maths, the others code
    assert_equal(step(config, theta, {"routed": own}), gradient(mixture(q, own, 0.4), theta))


# --- teacher and reward together ---


@pytest.mark.parametrize("reverse_weight", LAMBDAS)
@EVERY_SUPPORT
def test_add_is_the_sum_of_the_two_gradients(support: str, reverse_weight: float) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    config = recipe(support=support, topk=5, reverse_weight=reverse_weight, outcome={"weight": 0.7})
    expected = mixture(q, P, reverse_weight) - (q.exp() * A).sum(-1)  # the weight is in the advantage
    assert_equal(step(config, theta, P, advantage=A.flatten()), gradient(expected, theta))


def test_each_term_has_weights_of_its_own() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    config = recipe(support="full", outcome={"weight": 1.0})
    weights = {"distillation": 3.0 * q.exp().detach().flatten(), "outcome": 0.5 * q.exp().detach().flatten()}
    expected = 3.0 * kl(q, P) - 0.5 * (q.exp() * A).sum(-1)
    assert_equal(step(config, theta, P, advantage=A.flatten(), weights=weights), gradient(expected, theta))


@EVERY_SUPPORT
def test_gate_distils_where_the_advantage_is_positive_and_keeps_the_reward(support: str) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    config = recipe(support=support, topk=5, outcome={"weight": 1.0, "combine": "gate"})
    mass = q.exp().detach()
    if support == "sampled":
        distilled = -mass * (A > 0) * (P - q).detach() * q
    else:
        distilled = (mass * (A > 0)).sum(-1) * kl(q, P)
    expected = gradient(distilled.sum() - (mass * A * q).sum(), theta)
    assert_equal(step(config, theta, P, advantage=A.flatten()), expected)


def test_sign_takes_the_advantages_sign_and_the_log_ratios_size() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    config = recipe(outcome={"weight": 1.0, "combine": "sign"})
    assert config.terms == ("distillation",)
    advantage = A.clone()
    advantage[:, 0] = 0.0
    signal = advantage.sign() * (P - q).detach().abs()
    expected = gradient(-q.exp().detach() * signal * q, theta)
    assert_equal(step(config, theta, P, advantage=advantage.flatten()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("baseline", ["mean", "rloo"])
@pytest.mark.parametrize("combine", ["sign", "gate", "add"])
def test_a_group_of_equal_rewards_has_no_gradient_but_that_of_the_teacher(
    combine: str, baseline: str, dtype: torch.dtype
) -> None:
    config = recipe(outcome={"weight": 1.0, "combine": combine, "baseline": baseline, "scale": "std"})
    distilled = step(recipe(), logits(0).detach().to(dtype).requires_grad_(), P.to(dtype))
    for reward in (0.7, 0.1 + 0.2, -1 / 3):
        theta = logits(0).detach().to(dtype).requires_grad_()
        advantages = group_advantages([reward] * theta.numel(), ["one"] * theta.numel(), baseline, "std")
        found = step(config, theta, P.to(dtype), advantage=torch.tensor(advantages, dtype=dtype))
        assert float((found - distilled if combine == "add" else found).norm()) == 0.0


def test_switch_distils_before_its_step_and_follows_the_reward_from_it_on() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    config = recipe(support="full", outcome={"weight": 1.0, "combine": "switch", "switch_step": 3})
    distilled, rewarded = gradient(kl(q, P), theta), gradient(-(q.exp() * A).sum(-1), theta)
    for at, expected in ((1, distilled), (2, distilled), (3, rewarded), (9, rewarded)):
        assert_equal(step(config, theta, P, advantage=A.flatten(), dials=dials_at(config, at)), expected)


def half_squared(student_logprobs: Tensor, tokens: Any) -> Tensor:
    """A loss of one's own."""
    return 0.5 * (student_logprobs - tokens.scores["teacher"].logprobs).square().sum(-1)


def test_a_loss_of_ones_own_takes_the_place_of_the_divergence() -> None:
    theta = logits(0)
    config = recipe(support="full", loss=f"{__name__}:half_squared")
    expected = gradient(0.5 * (theta.log_softmax(-1) - P).square(), theta)
    assert_equal(step(config, theta, P), expected)
