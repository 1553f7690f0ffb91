"""Where the reference's penalty is put, and what each place is the gradient of; on the tree, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.advantage import group_advantages
from tests.objectives.enumeration import assert_equal, gradient, kl, log_probs, logits, recipe
from tests.objectives.tree import (
    NODE,
    NODES,
    OUTCOMES,
    RESPONSE_COUNT,
    SEQUENCE,
    TOKEN,
    log_prob,
    reach,
    sequence_kl,
    tree_step,
)

BETA = 0.3
REF = log_probs(5, NODES, OUTCOMES)
MODELS = {"ref": REF}
REWARD = torch.randn(RESPONSE_COUNT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def theta_() -> Tensor:
    return logits(0, NODES, OUTCOMES)


def held_back(placement: str, **outcome: Any) -> Any:
    reference = {"model": "ref", "beta": BETA, "placement": placement}
    return recipe(target="none", outcome={"weight": 1.0, **outcome}, reference=reference)


def mean_reward(q: Tensor) -> Tensor:
    return (log_prob(q).exp() * REWARD).sum()


def j(q: Tensor) -> Tensor:
    """E[R] - beta KL(q||ref) over whole responses."""
    return mean_reward(q) - BETA * sequence_kl(q, REF)


def k1(q: Tensor) -> Tensor:
    """sum_t k1_t of each response, [40], a constant."""
    return (log_prob(q) - log_prob(REF)).detach()


def by_token(of_response: Tensor) -> Tensor:
    return of_response[SEQUENCE]


def summed(q: Tensor) -> Tensor:
    """R - beta sum_t k1_t as the orchestrator forms it: one number a response, then its group's baseline (none)."""
    totals = (REWARD - BETA * k1(q)).tolist()
    advantages = group_advantages(totals, ["all"] * RESPONSE_COUNT, "none")
    return by_token(torch.tensor(advantages, dtype=torch.float64))


def test_the_reward_less_the_summed_k1_on_every_token_has_the_gradient_of_j() -> None:
    theta = theta_()
    q = theta.log_softmax(-1)
    computed = tree_step(held_back("reward_sum"), theta, MODELS, advantage=summed(q))
    assert_equal(computed, -gradient(j(q), theta))


def test_j_is_minus_beta_kl_to_the_tilted_reference_and_so_is_its_gradient() -> None:
    theta = theta_()
    q = theta.log_softmax(-1)
    tilted = log_prob(REF) + REWARD / BETA
    best = tilted.log_softmax(-1)
    assert_equal(j(q), -BETA * kl(log_prob(q), best) + BETA * tilted.logsumexp(-1))
    computed = tree_step(held_back("reward_sum"), theta, MODELS, advantage=summed(q))
    assert_equal(computed, BETA * gradient(kl(log_prob(q), best), theta))


def test_a_reward_at_each_token_and_its_returns_have_the_gradient_of_j_too() -> None:
    theta = theta_()
    computed = tree_step(held_back("reward_token"), theta, MODELS, advantage=by_token(REWARD))
    assert_equal(computed, -gradient(j(theta.log_softmax(-1)), theta))


def test_a_penalty_on_its_own_token_drops_the_future() -> None:
    theta = theta_()
    computed = tree_step(held_back("signal_token"), theta, MODELS, advantage=by_token(REWARD))
    assert_equal(computed, token_level(theta))
    assert (computed + gradient(j(theta.log_softmax(-1)), theta)).abs().max() > 1e-2


def token_level(theta: Tensor) -> Tensor:
    """Gradient of -E[R] + beta E over student prefixes, held fixed, of the token's KL to the reference."""
    q = theta.log_softmax(-1)
    return gradient(-mean_reward(q) + BETA * (reach(q) * kl(q, REF)).sum(), theta)


@pytest.mark.parametrize("placement", ["loss_k2", "exact"])
def test_k2_in_the_loss_and_the_exact_kl_have_the_token_level_gradient(placement: str) -> None:
    theta = theta_()
    config = held_back(placement)
    assert config.terms == ("outcome", "reference")
    assert_equal(tree_step(config, theta, MODELS, advantage=by_token(REWARD)), token_level(theta))


def test_the_reference_term_has_weights_of_its_own() -> None:
    theta = theta_()
    q = theta.log_softmax(-1)
    chance = by_token(log_prob(q).exp().detach())
    weights = {"outcome": 0.0 * chance, "reference": 2.0 * chance}
    computed = tree_step(held_back("exact"), theta, MODELS, advantage=by_token(REWARD), weights=weights)
    assert_equal(computed, 2.0 * gradient(BETA * (reach(q) * kl(q, REF)).sum(), theta))


@pytest.mark.parametrize("placement", ["reward_token", "signal_token", "loss_k2", "exact"])
def test_a_beta_of_zero_is_no_reference(placement: str) -> None:
    theta = theta_()
    config = held_back(placement)
    free = config.model_copy(update={"reference": config.reference.model_copy(update={"beta": 0.0})})
    expected = -gradient(mean_reward(theta.log_softmax(-1)), theta)
    assert_equal(tree_step(free, theta, MODELS, advantage=by_token(REWARD)), expected)


def value_streams(seed: int) -> Tensor:
    """Any value of each prefix, on each token."""
    return torch.randn(NODES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[NODE]


def last_token() -> Tensor:
    return torch.cat([SEQUENCE[1:] != SEQUENCE[:-1], torch.tensor([True])])


@pytest.mark.parametrize("placement", ["reward_token", "signal_token"])
def test_with_a_value_baseline_each_placement_keeps_its_meaning(placement: str) -> None:
    theta = theta_()
    q = theta.log_softmax(-1)
    config = held_back(placement, baseline="value", value={"discount": 1.0, "decay": 1.0})
    weights = {"outcome": by_token(log_prob(q).exp().detach()), "value": torch.zeros(len(NODE)).double()}
    given = {"reward": by_token(REWARD), "old_value": value_streams(1), "weights": weights}
    computed = tree_step(config, theta, MODELS, value=value_streams(2), **given)
    expected = -gradient(j(q), theta) if placement == "reward_token" else token_level(theta)
    assert_equal(computed, expected)


def test_the_penalty_is_of_the_policy_that_the_step_began_with() -> None:
    theta, old = theta_(), log_probs(7, NODES, OUTCOMES)
    q = theta.log_softmax(-1)
    config = held_back("signal_token")
    computed = tree_step(config, theta, MODELS, mu=old, advantage=by_token(REWARD), old_logprob=old[NODE, TOKEN])
    signal = by_token(REWARD) - BETA * (old - REF)[NODE, TOKEN]
    ratio = (q - old)[NODE, TOKEN].exp()
    assert_equal(computed, gradient(-by_token(log_prob(old).exp()) * ratio * signal, theta))
