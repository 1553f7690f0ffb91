"""The divergences as functions: values, gradients, bounds and limits."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from objectives.divergence import LOGPROB_FLOOR, entropy, forward_kl, reverse_kl, support_kl, token_kl
from tests.objectives.enumeration import (
    LAMBDAS,
    VOCABULARY,
    assert_equal,
    extreme_pairs,
    gradient,
    kl,
    log_of,
    log_probs,
    logit_pairs,
    logits,
    merged,
    mixture,
    proven_by_examples,
)

EVERY_LAMBDA = pytest.mark.parametrize("reverse_weight", LAMBDAS)
reverse_weights = st.floats(0.0, 1.0)


def test_kl_of_a_biased_from_a_fair_coin_is_0_0823() -> None:
    biased, fair = log_of(0.7, 0.3), log_of(0.5, 0.5)
    expected = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    assert reverse_kl(biased, fair).item() == pytest.approx(expected, abs=1e-12) == pytest.approx(0.0823, abs=5e-5)
    assert_equal(forward_kl(fair, biased), reverse_kl(biased, fair))


def test_kl_of_a_distribution_from_itself_is_zero() -> None:
    q = log_probs(0)
    for reverse_weight in LAMBDAS:
        assert_equal(token_kl(q, q, reverse_weight), torch.zeros(len(q), dtype=q.dtype))


@EVERY_LAMBDA
def test_gradient_of_token_kl_is_its_closed_form(reverse_weight: float) -> None:
    theta, p = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    closed_form = reverse_weight * q.exp() * (q - p - kl(q, p).unsqueeze(-1)) + (1 - reverse_weight) * (
        q.exp() - p.exp()
    )
    assert_equal(token_kl(q, p, reverse_weight), mixture(q, p, reverse_weight))
    assert_equal(gradient(token_kl(q, p, reverse_weight), theta), closed_form)


@EVERY_LAMBDA
def test_token_kl_is_linear_in_lambda(reverse_weight: float) -> None:
    q, p = log_probs(0), log_probs(1)
    ends = reverse_weight * token_kl(q, p, 1.0) + (1 - reverse_weight) * token_kl(q, p, 0.0)
    assert_equal(token_kl(q, p, reverse_weight), ends)


def test_entropy_of_a_uniform_distribution_is_log_v_and_zero_times_log_zero_is_zero() -> None:
    assert_equal(entropy(log_of(0.25, 0.25, 0.25, 0.25)), torch.tensor(math.log(4), dtype=torch.float64))
    assert_equal(entropy(log_of(0.5, 0.5, 0.0)), torch.tensor(math.log(2), dtype=torch.float64))


def test_a_teachers_zero_counts_as_the_floor_in_reverse_and_as_nothing_in_forward() -> None:
    q, p = log_of(0.5, 0.3, 0.2), log_of(0.6, 0.4, 0.0)
    floored = 0.5 * math.log(0.5 / 0.6) + 0.3 * math.log(0.3 / 0.4) + 0.2 * (math.log(0.2) - LOGPROB_FLOOR)
    assert_equal(reverse_kl(q, p), torch.tensor(floored, dtype=torch.float64))
    assert_equal(forward_kl(q, p), kl(p[:2], q[:2]))


@EVERY_LAMBDA
def test_support_kl_on_the_whole_vocabulary_is_token_kl(reverse_weight: float) -> None:
    theta, p = logits(0), log_probs(1)
    q = theta.log_softmax(-1)
    whole, exact = support_kl(q, p, reverse_weight), token_kl(q, p, reverse_weight)
    assert_equal(whole, exact)
    assert_equal(gradient(whole, theta), gradient(exact, theta))


@pytest.mark.parametrize("k", range(1, VOCABULARY))
@EVERY_LAMBDA
def test_support_kl_is_the_kl_over_k_plus_one_categories(reverse_weight: float, k: int) -> None:
    theta, p = logits(0), log_probs(1)
    q, top = theta.log_softmax(-1), p.topk(k).indices
    computed = support_kl(q.gather(-1, top), p.gather(-1, top), reverse_weight)
    explicit = mixture(merged(q, top), merged(p, top), reverse_weight)
    assert_equal(computed, explicit)
    assert_equal(gradient(computed, theta), gradient(explicit, theta))


@EVERY_LAMBDA
def test_a_larger_support_never_lowers_support_kl_and_token_kl_bounds_it(reverse_weight: float) -> None:
    q, p = log_probs(0), log_probs(1)
    supports = [p.topk(k).indices for k in range(1, VOCABULARY)]
    nested = [support_kl(q.gather(-1, top), p.gather(-1, top), reverse_weight) for top in supports]
    bounds = torch.stack([*nested, token_kl(q, p, reverse_weight)])
    assert (bounds >= -1e-9).all() and (bounds.diff(dim=0) >= -1e-9).all()


def _rounded(p: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's support as it travels: float16 log-probs, and the tail from the full softmax."""
    return p.gather(-1, top).half().to(p.dtype), p.scatter(-1, top, -torch.inf).logsumexp(-1)


def test_a_rounded_teacher_with_its_tail_is_normalised_again() -> None:
    q, p = log_probs(0), log_probs(1)
    top = p.topk(VOCABULARY - 1).indices
    values, tail = _rounded(p, top)
    teacher = torch.cat([values, tail.unsqueeze(-1)], -1)
    teacher = teacher - teacher.exp().sum(-1, keepdim=True).log()
    computed = support_kl(q.gather(-1, top), values, 0.5, teacher_tail=tail)
    assert_equal(computed, mixture(merged(q, top), teacher, 0.5))


def test_the_teachers_own_tail_survives_rounding_where_one_minus_the_sum_does_not() -> None:
    q, p = log_probs(0), (3.0 * log_probs(1)).log_softmax(-1)  # peaked: tails of 3e-6 to 1e-2 of the mass
    top = p.topk(3).indices
    values, tail = _rounded(p, top)
    exact = support_kl(q.gather(-1, top), p.gather(-1, top), 1.0, teacher_tail=tail)
    with_tail = support_kl(q.gather(-1, top), values, 1.0, teacher_tail=tail)
    without = support_kl(q.gather(-1, top), values, 1.0)
    assert (with_tail - exact).abs().max() < 1e-2 < (without - exact).abs().max()


def test_an_unknown_tail_is_refused() -> None:
    with pytest.raises(ValueError, match="tail 'drop' is unknown"):
        support_kl(log_probs(0), log_probs(1), 1.0, tail="drop")


@proven_by_examples
@given(logit_pairs(), reverse_weights, st.data())
def test_divergences_are_never_negative(
    pair: tuple[Tensor, Tensor], reverse_weight: float, data: st.DataObject
) -> None:
    q, p = (x.log_softmax(-1) for x in pair)
    top = p.topk(data.draw(st.integers(1, p.shape[-1]))).indices
    whole, bucket = token_kl(q, p, reverse_weight), support_kl(q.gather(-1, top), p.gather(-1, top), reverse_weight)
    assert whole >= -1e-9
    assert -1e-6 <= bucket <= whole + 1e-6  # with_tail keeps 1e-6 of the mass outside the support


@proven_by_examples
@given(logit_pairs(), reverse_weights, st.randoms(use_true_random=False))
def test_divergences_do_not_know_the_order_of_tokens(
    pair: tuple[Tensor, Tensor], reverse_weight: float, random: Random
) -> None:
    q, p = (x.log_softmax(-1) for x in pair)
    order = torch.tensor(random.sample(range(q.shape[-1]), q.shape[-1]))
    assert_equal(token_kl(q[:, order], p[:, order], reverse_weight), token_kl(q, p, reverse_weight))
    some = order[: len(order) // 2]
    same = some.sort().values
    assert_equal(support_kl(q[:, some], p[:, some], reverse_weight), support_kl(q[:, same], p[:, same], reverse_weight))
    assert_equal(entropy(q[:, order]), entropy(q))


@proven_by_examples
@given(extreme_pairs(), reverse_weights)
def test_values_and_gradients_are_finite_in_float32(pair: tuple[Tensor, Tensor], reverse_weight: float) -> None:
    theta, p = pair[0].requires_grad_(), pair[1].log_softmax(-1)
    for k in range(1, p.shape[-1] + 1):
        q, top = theta.log_softmax(-1), p.topk(k).indices
        tail = p.scatter(-1, top, -torch.inf).logsumexp(-1)
        support = q.gather(-1, top), p.gather(-1, top), reverse_weight
        for value in (support_kl(*support), support_kl(*support, teacher_tail=tail), token_kl(q, p, reverse_weight)):
            assert value.isfinite().all() and gradient(value, theta).isfinite().all()
