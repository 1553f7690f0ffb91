"""Group baselines, proven by enumeration of every group of n samples over a small vocabulary."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from objectives.advantage import group_advantages
from objectives.objective import Tokens
from tests.objectives.enumeration import assert_equal, gradient, logits, loss, recipe

REWARDS = (1.0, -0.5, 2.0, 0.3)  # of each token of the vocabulary
OUTCOME = recipe(outcome={"weight": 1.0})


def mean_gradient(baseline: str, n: int) -> tuple[Tensor, Tensor]:
    """Expected gradient of the outcome loss over all groups of n independent samples, and that of -E_q[R]."""
    theta = logits(0, prefixes=1, vocabulary=len(REWARDS))
    q = theta.log_softmax(-1).squeeze(0)
    groups = torch.tensor(list(product(range(len(REWARDS)), repeat=n)))  # [V^n, n]
    drawn = groups.flatten()
    names = [str(group) for group in range(len(groups)) for _ in range(n)]
    advantages = group_advantages([REWARDS[y] for y in drawn], names, baseline)
    tokens = Tokens(
        student_logprobs=q.expand(len(drawn), -1),
        token_ids=drawn,
        weight=(q.detach()[groups].sum(-1).exp() / n).repeat_interleave(n),  # P(group) / n
        rollout_logprob=q.detach()[drawn],
        advantage=torch.tensor(advantages, dtype=torch.float64),
        teacher_logprob=q.detach()[drawn],  # p = q: the teacher is silent
    )
    exact = -(q.exp() * torch.tensor(REWARDS, dtype=torch.float64)).sum()
    return gradient(loss(OUTCOME, tokens), theta), gradient(exact, theta)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_without_a_baseline_the_mean_gradient_is_that_of_the_expected_reward(n: int) -> None:
    computed, exact = mean_gradient("none", n)
    assert_equal(computed, exact)


@pytest.mark.parametrize("n", [2, 3])
def test_rloo_leaves_the_mean_gradient_unchanged(n: int) -> None:
    computed, exact = mean_gradient("rloo", n)
    assert_equal(computed, exact)


@pytest.mark.parametrize("n", [2, 3])
def test_the_group_mean_scales_the_mean_gradient_by_n_minus_one_over_n(n: int) -> None:
    computed, exact = mean_gradient("mean", n)
    assert_equal(computed, exact * (n - 1) / n)


def test_rloo_is_the_reward_minus_the_mean_of_the_others() -> None:
    assert group_advantages([1.0, 2.0, 6.0], "aaa", "rloo") == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])


@pytest.mark.parametrize("baseline", ["mean", "rloo"])
def test_groups_are_centred_apart_in_any_order(baseline: str) -> None:
    rewards, groups = [1.0, 10.0, 3.0, 20.0, 5.0], list("abaab")
    advantages = dict(enumerate(group_advantages(rewards, groups, baseline)))
    for name in "ab":
        members = [i for i, group in enumerate(groups) if group == name]
        alone = group_advantages([rewards[i] for i in members], [name] * len(members), baseline)
        assert [advantages[i] for i in members] == pytest.approx(alone)
        assert sum(alone) == pytest.approx(0.0)


@pytest.mark.parametrize("baseline", ["mean", "rloo"])
def test_a_group_of_one_has_no_advantage(baseline: str) -> None:
    assert group_advantages([7.0], ["a"], baseline) == [0.0]


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="baseline 'median' is unknown"):
        group_advantages([1.0], ["a"], "median")
