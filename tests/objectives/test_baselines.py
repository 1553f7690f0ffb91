"""Baselines: which leave the mean gradient as it is, and by how much the group mean scales it. Every group of n."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.advantage import group_advantages
from tests.objectives.enumeration import (
    LAMBDAS,
    assert_equal,
    every_token,
    gradient,
    kl,
    log_probs,
    logits,
    loss,
    micro_batch,
    recipe,
    step,
)
from tests.objectives.tree import (
    LENGTHS,
    NODE,
    NODES,
    OUTCOMES,
    POSITION,
    RESPONSE_COUNT,
    SEQUENCE,
    TOKEN,
    log_prob,
    reach,
    responses,
    tree_step,
)

REWARDS = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=torch.float64)  # of each token of a vocabulary of 4
REWARD = torch.randn(RESPONSE_COUNT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
P = log_probs(1)


def rewarded(**outcome: Any) -> Any:
    return recipe(target="none", outcome={"weight": 1.0, **outcome})


def group_step(baseline: str, n: int, scale: str = "none") -> tuple[Tensor, Tensor]:
    """Mean gradient over every group of n samples of one prefix, and that of -E[R]."""
    theta = logits(0, 1, len(REWARDS))
    q = theta.log_softmax(-1).squeeze(0)
    groups = torch.tensor(list(product(range(len(REWARDS)), repeat=n)))  # [V^n, n]
    drawn = groups.flatten()
    names = [str(group) for group in range(len(groups)) for _ in range(n)]
    advantages = group_advantages(REWARDS[drawn].tolist(), names, baseline, scale)
    rows = q.expand(len(drawn), -1)
    chance = (q.detach()[groups].sum(-1).exp() / n).repeat_interleave(n)
    given = {"advantage": torch.tensor(advantages, dtype=torch.float64)}
    config = rewarded(baseline=baseline)
    computed = gradient(loss(config, rows, micro_batch(config, drawn, rows.detach(), chance, {}, **given)), theta)
    return computed, -gradient(q.exp() * REWARDS, theta)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_without_a_baseline_the_mean_gradient_is_that_of_the_expected_reward(n: int) -> None:
    assert_equal(*group_step("none", n))


@pytest.mark.parametrize("n", [2, 3])
def test_rloo_leaves_the_mean_gradient(n: int) -> None:
    assert_equal(*group_step("rloo", n))


@pytest.mark.parametrize("n", [2, 3])
def test_the_group_mean_scales_the_mean_gradient_by_n_minus_one_over_n(n: int) -> None:
    computed, exact = group_step("mean", n)
    assert_equal(computed, exact * (n - 1) / n)


@pytest.mark.parametrize("n", [2, 3])
def test_dividing_by_the_groups_std_is_no_constant_factor(n: int) -> None:
    computed, exact = group_step("mean", n, "std")
    ratio = computed / exact
    assert ratio.max() - ratio.min() > 1e-2


@pytest.mark.parametrize("baseline, share", [("rloo", 1.0), ("mean", 0.5)])
def test_pairs_of_whole_responses_are_scaled_as_single_tokens_are(baseline: str, share: float) -> None:
    theta = logits(0, NODES, OUTCOMES)
    q = theta.log_softmax(-1)
    chance = log_prob(q).exp().detach()
    mean_advantage = torch.zeros(RESPONSE_COUNT, dtype=torch.float64)
    for i, j in product(range(RESPONSE_COUNT), repeat=2):  # the first of a pair, by symmetry
        first, _ = group_advantages([REWARD[i].item(), REWARD[j].item()], ["pair"] * 2, baseline)
        mean_advantage[i] += chance[j] * first
    computed = tree_step(rewarded(baseline=baseline), theta, {}, advantage=mean_advantage[SEQUENCE])
    assert_equal(computed, -share * gradient(log_prob(q).exp() * REWARD, theta))


@pytest.mark.parametrize("reverse_weight", LAMBDAS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_exact_baseline_leaves_the_mean_gradient_and_centres_the_signal_as_clipped(
    reverse_weight: float, clip: float | None
) -> None:
    theta = logits(0)
    axes = {"reverse_weight": reverse_weight, "clip": clip}
    config = recipe(support="full", baseline="exact", **axes)
    assert_equal(step(config, theta, P), step(recipe(**axes), theta, P))
    student, tokens = every_token(config, theta.log_softmax(-1), P)
    in_logprob = gradient(loss(config, student, tokens), student).gather(-1, tokens.token_ids.unsqueeze(-1))
    assert_equal(in_logprob.reshape(P.shape).sum(-1), torch.zeros(len(P)).double())  # the mean signal of each prefix


def test_the_exact_baseline_of_the_log_ratio_is_minus_reverse_kl() -> None:
    q = logits(0).log_softmax(-1).detach().requires_grad_()
    config = recipe(support="full", baseline="exact")
    student, tokens = every_token(config, q, P)
    signal = -gradient(loss(config, student, tokens), student).gather(-1, tokens.token_ids.unsqueeze(-1))
    expected = q.exp() * (P - q + kl(q, P).unsqueeze(-1))
    assert_equal(signal.reshape(P.shape), expected.detach())


@pytest.mark.parametrize("family, weight", [("jsd", 0.3), ("skew", 0.4), ("power", 1.0)])
def test_the_exact_baseline_centres_every_family(family: str, weight: float) -> None:
    theta = logits(0)
    models = {"a": P, "b": log_probs(2)}
    axes = {"family": family, "reverse_weight": weight, "target": {"a": 0.5, "b": 0.7}}
    config = recipe(support="full", baseline="exact", **axes)
    assert_equal(step(config, theta, models), step(recipe(**axes), theta, models))
    student, tokens = every_token(config, theta.log_softmax(-1), models)
    in_logprob = gradient(loss(config, student, tokens), student).gather(-1, tokens.token_ids.unsqueeze(-1))
    assert_equal(in_logprob.reshape(P.shape).sum(-1), torch.zeros(len(P)).double())


def of_nodes(seed: int) -> Tensor:
    return torch.randn(NODES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_step(values: Tensor, decay: float, discount: float = 1.0, old: Tensor | None = None) -> Tensor:
    """Mean gradient in the policy's logits with a value head that says `values` [13] of each prefix."""
    config = rewarded(baseline="value", value={"discount": discount, "decay": decay})
    given = {"reward": REWARD[SEQUENCE], "old_value": None if old is None else old[NODE]}
    return tree_step(config, logits(0, NODES, OUTCOMES), {}, value=values[NODE], **given)


def reward_step() -> Tensor:
    theta = logits(0, NODES, OUTCOMES)
    return -gradient(log_prob(theta.log_softmax(-1)).exp() * REWARD, theta)


def true_values() -> Tensor:
    """E_q[R] from each prefix on, [13]."""
    q = logits(0, NODES, OUTCOMES).detach().log_softmax(-1)
    mass = log_prob(q).exp()
    through = torch.zeros(NODES).double().index_add(0, NODE, (mass * REWARD)[SEQUENCE])
    return through / reach(q)


@pytest.mark.parametrize("seed", range(3))
def test_gae_with_decay_and_discount_one_and_any_values_leaves_the_mean_gradient(seed: int) -> None:
    assert_equal(value_step(of_nodes(seed), decay=1.0), reward_step())
    assert_equal(value_step(of_nodes(seed), decay=1.0, old=of_nodes(seed + 10)), reward_step())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_with_less_decay_only_true_values_leave_the_mean_gradient(decay: float) -> None:
    assert_equal(value_step(true_values(), decay), reward_step())
    assert (value_step(of_nodes(0), decay) - reward_step()).abs().max() > 1e-2


def test_advantages_are_of_the_values_that_the_step_began_with() -> None:
    assert_equal(value_step(of_nodes(0), 0.5, old=of_nodes(1)), value_step(of_nodes(1), 0.5))
    assert (value_step(of_nodes(0), 0.5) - value_step(of_nodes(1), 0.5)).abs().max() > 1e-2


def test_the_value_loss_is_half_the_squared_error_to_the_return_and_rests_at_true_values() -> None:
    config = rewarded(baseline="value", value={"discount": 1.0, "decay": 1.0, "loss_weight": 0.7})
    q = logits(0, NODES, OUTCOMES).log_softmax(-1)
    chance = log_prob(q).exp().detach()[SEQUENCE]
    weights = {"outcome": 0.0 * chance, "value": chance}
    for values, rests in ((true_values(), True), (of_nodes(0), False)):
        values.requires_grad_()
        student, tokens = responses(config, q, {}, reward=REWARD[SEQUENCE], weights=weights)
        computed = loss(config, student, tokens, value=values[NODE])
        expected = (chance * 0.7 * 0.5 * (values[NODE] - REWARD[SEQUENCE]).square()).sum()
        assert_equal(computed, expected)
        slope = gradient(computed, values)
        assert_equal(slope, gradient(expected, values))
        assert (slope.abs().max() < 1e-9) == rests


@pytest.mark.parametrize("decay, discount", [(0.95, 1.0), (0.5, 0.9), (0.0, 1.0)])
def test_generalised_advantages_are_the_slow_sums_of_discounted_errors(decay: float, discount: float) -> None:
    theta, values = logits(0, NODES, OUTCOMES), of_nodes(0)
    q = theta.log_softmax(-1)
    advantage = torch.zeros(len(NODE)).double()
    for i in range(len(NODE)):
        for k in range(int(LENGTHS[SEQUENCE[i]] - POSITION[i])):
            last = POSITION[i + k] == LENGTHS[SEQUENCE[i]] - 1
            following = 0.0 if last else values[NODE[i + k + 1]]
            reward = REWARD[SEQUENCE[i]] if last else 0.0
            advantage[i] += (discount * decay) ** k * (reward + discount * following - values[NODE[i + k]])
    chance = log_prob(q).exp().detach()[SEQUENCE]
    expected = gradient(-chance * advantage * q[NODE, TOKEN], theta)
    assert_equal(value_step(values, decay, discount), expected)


@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_a_value_head_as_the_baseline_of_the_signal_leaves_the_mean_gradient(discount: float) -> None:
    theta, teacher = logits(0, NODES, OUTCOMES), {"teacher": log_probs(1, NODES, OUTCOMES)}
    plain = tree_step(recipe(discount=discount), theta, teacher)
    with_head = recipe(discount=discount, baseline="value")
    assert_equal(tree_step(with_head, logits(0, NODES, OUTCOMES), teacher, value=of_nodes(4)[NODE]), plain)
