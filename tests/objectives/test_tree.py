"""Token and sequence: which divergence of whole responses a token-level objective is, by every one of a small tree."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from tests.objectives.enumeration import assert_equal, gradient, kl, log_probs, logits, loss, recipe, step
from tests.objectives.tree import (
    LENGTHS,
    NODE,
    NODES,
    OUTCOMES,
    SEQUENCE,
    TOKEN,
    log_prob,
    reach,
    responses,
    sequence_kl,
    tree_loss,
    tree_step,
)

P = log_probs(1, NODES, OUTCOMES)
TEACHER = {"teacher": P}


def theta_() -> torch.Tensor:
    return logits(0, NODES, OUTCOMES)


def test_the_responses_of_the_tree_are_a_distribution_with_truncated_ones_in_it() -> None:
    assert_equal(log_prob(P).exp().sum(), torch.tensor(1.0).double())
    assert (LENGTHS == 3).sum() == 27 + 9 and log_prob(P)[13:].exp().sum() > 0.01


def test_reverse_kl_of_sequences_is_the_sum_of_token_kls_over_student_prefixes() -> None:
    q = theta_().log_softmax(-1)
    assert_equal(tree_loss(recipe(support="full"), q, TEACHER), sequence_kl(q, P))
    assert_equal((reach(q) * kl(q, P)).sum(), sequence_kl(q, P))


def test_forward_kl_of_sequences_is_the_sum_of_token_kls_over_teacher_prefixes() -> None:
    q = theta_().log_softmax(-1)
    config = recipe(support="full", reverse_weight=0.0, prefix="teacher")
    assert_equal(tree_loss(config, q, TEACHER, mu=P), sequence_kl(P, q))
    assert_equal((reach(P) * kl(P, q)).sum(), sequence_kl(P, q))


@pytest.mark.parametrize("support", ["topk", "full"])
def test_teacher_prefixes_with_token_forward_kl_have_the_gradient_of_the_sequences_forward_kl(support: str) -> None:
    theta = theta_()
    config = recipe(support=support, topk=OUTCOMES, reverse_weight=0.0, prefix="teacher")
    expected = gradient(sequence_kl(P, theta.log_softmax(-1)), theta)
    assert_equal(tree_step(config, theta, TEACHER, mu=P), expected)


def test_cross_entropy_on_the_teachers_own_responses_has_the_gradient_of_the_sequences_forward_kl() -> None:
    theta = theta_()
    config = recipe(target="data", prefix="teacher", reverse_weight=0.0)
    expected = gradient(sequence_kl(P, theta.log_softmax(-1)), theta)
    assert_equal(tree_step(config, theta, {}, mu=P, drawn=torch.zeros(len(NODE), dtype=torch.bool)), expected)


def test_log_ratio_returns_without_length_normalisation_have_the_gradient_of_the_sequences_reverse_kl() -> None:
    theta = theta_()
    expected = gradient(sequence_kl(theta.log_softmax(-1), P), theta)
    assert_equal(tree_step(recipe(discount=1.0, normalise="constant"), theta, TEACHER), expected)


def test_without_discount_the_gradient_is_the_token_one_at_student_prefixes_and_differs_from_the_sequences() -> None:
    theta = theta_()
    q = theta.log_softmax(-1)
    token_level = gradient((reach(q) * kl(q, P)).sum(), theta)
    assert_equal(tree_step(recipe(normalise="constant"), theta, TEACHER), token_level)
    assert_equal(tree_step(recipe(support="full"), theta, TEACHER), token_level)
    assert (token_level - gradient(sequence_kl(q, P), theta)).abs().max() > 1e-2


@pytest.mark.parametrize("discount", [0.3, 0.9])
def test_a_discount_between_weighs_each_later_token_kl_by_its_distance(discount: float) -> None:
    theta = theta_()
    q = theta.log_softmax(-1)
    l = (P - q).detach()[NODE, TOKEN]  # noqa: E741
    place = torch.arange(len(l))
    gap = place - place[:, None]  # [i, j]: j comes so many tokens after i
    follows = (gap >= 0) & (SEQUENCE[:, None] == SEQUENCE)
    later = torch.where(follows, discount ** gap.clamp(min=0).to(l.dtype) * l, 0.0).sum(-1)
    chance = log_prob(q).exp().detach()[SEQUENCE]
    expected = gradient(-chance * later * q[NODE, TOKEN], theta)
    assert_equal(tree_step(recipe(discount=discount), theta, TEACHER), expected)


def test_the_later_terms_of_a_forward_part_have_mean_zero_so_a_discount_adds_only_noise_to_it() -> None:
    theta = theta_()
    q = theta.log_softmax(-1)
    discounted = recipe(reverse_weight=0.0, discount=1.0, allow_biased=("discounted_forward",))
    assert_equal(tree_step(discounted, theta, TEACHER), gradient((reach(q) * kl(P, q)).sum(), theta))


CELLS = {(prefix, weight): recipe(support="full", prefix=prefix, reverse_weight=weight)
         for prefix in ("student", "teacher") for weight in (0.0, 1.0)}  # fmt: skip


@pytest.mark.parametrize("prefix, reverse_weight", CELLS)
def test_prefix_and_direction_are_two_choices(prefix: str, reverse_weight: float) -> None:
    theta = theta_()
    q = theta.log_softmax(-1)
    mu = {"student": q, "teacher": P}[prefix]
    divergence = kl(q, P) if reverse_weight else kl(P, q)
    computed = tree_step(CELLS[prefix, reverse_weight], theta, TEACHER, mu=mu)
    assert_equal(computed, gradient((reach(mu) * divergence).sum(), theta))


def test_the_four_cells_of_prefix_and_direction_have_four_gradients_and_one_alone_is_a_sequences() -> None:
    theta = theta_()
    q = theta.log_softmax(-1)
    steps = {cell: tree_step(config, theta, TEACHER, mu=q if cell[0] == "student" else P)
             for cell, config in CELLS.items()}  # fmt: skip
    for a, b in combinations(steps.values(), 2):
        assert (a - b).abs().max() > 1e-2
    whole = [gradient(value, theta) for value in (sequence_kl(q, P), sequence_kl(P, q))]
    same = {cell for cell, found in steps.items() if any((found - exact).abs().max() < 1e-9 for exact in whole)}
    assert same == {("teacher", 0.0)}


def test_a_mixture_of_prefixes_has_the_mixture_of_their_gradients() -> None:
    theta = theta_()
    q = theta.log_softmax(-1).detach()
    config = recipe(support="full", prefix={"student": 0.25, "teacher": 0.75})
    by_source = [tree_step(config, theta, TEACHER, mu=mu) for mu in (q, P)]
    chance = (0.25 * log_prob(q).exp() + 0.75 * log_prob(P).exp())[SEQUENCE]
    mixed = tree_step(config, theta, TEACHER, weights={"distillation": chance})
    assert_equal(mixed, 0.25 * by_source[0] + 0.75 * by_source[1])


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_the_exact_baseline_leaves_the_mean_gradient_with_and_without_returns(discount: float) -> None:
    theta = theta_()
    plain = recipe(discount=discount)
    with_baseline = recipe(support="full", baseline="exact", discount=discount)
    assert_equal(tree_step(with_baseline, theta, TEACHER), tree_step(plain, theta, TEACHER))


def test_with_returns_the_exact_baseline_is_of_the_tokens_own_prefix() -> None:
    q = theta_().log_softmax(-1)
    config = recipe(support="full", baseline="exact", discount=1.0)
    student, tokens = responses(config, q, TEACHER)
    in_logprob = gradient(loss(config, student, tokens), student).gather(-1, TOKEN.unsqueeze(-1)).squeeze(-1)
    l = (P - q).detach()[NODE, TOKEN]  # noqa: E741
    later = torch.stack([l[i:][SEQUENCE[i:] == SEQUENCE[i]].sum() for i in range(len(l))])
    chance = log_prob(q).exp().detach()[SEQUENCE]
    assert_equal(in_logprob, -chance * (later + kl(q, P).detach()[NODE]))


@pytest.mark.parametrize("axes", [{}, {"support": "full", "baseline": "exact"}])
def test_extrapolation_with_returns_is_towards_the_extrapolated_distribution_of_responses(axes: dict[str, str]) -> None:
    theta, base = theta_(), log_probs(2, NODES, OUTCOMES)
    config = recipe(extrapolate={"base": "base", "weight": 1.5}, discount=1.0, **axes)
    target = (1.5 * log_prob(P) - 0.5 * log_prob(base)).log_softmax(-1)
    expected = gradient(kl(log_prob(theta.log_softmax(-1)), target), theta)
    assert_equal(tree_step(config, theta, {"teacher": P, "base": base}), expected)


def test_one_prefix_is_a_tree_of_length_one() -> None:
    theta = logits(0, 1, OUTCOMES)
    assert_equal(step(recipe(discount=1.0), theta, P[:1]), step(recipe(), theta, P[:1]))
