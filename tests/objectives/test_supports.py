"""Supports: which outcomes stand for the vocabulary, what becomes of the tail, and what a clip cuts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from objectives import log_ratio_signal, support_kl, token_kl
from objectives.divergence import Family
from objectives.signal import expected_signal, family_signal
from tests.objectives.enumeration import (
    LAMBDAS,
    VOCABULARY,
    assert_equal,
    every_token,
    gradient,
    kl,
    log_of,
    log_probs,
    logits,
    loss,
    merged,
    mixture,
    recipe,
    step,
)

EVERY_LAMBDA = pytest.mark.parametrize("reverse_weight", LAMBDAS)
P = log_probs(1)


def topk(**axes: Any) -> Any:
    return recipe(support="topk", **{"topk": 3, "reverse_weight": 0.7, **axes})


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@EVERY_LAMBDA
def test_with_a_bucket_topk_is_the_mixture_over_k_plus_one_categories(reverse_weight: float, k: int) -> None:
    theta = logits(0)
    q, top = theta.log_softmax(-1), P.topk(k).indices
    config = topk(topk=k, reverse_weight=reverse_weight)
    expected = mixture(merged(q, top), merged(P, top), reverse_weight)
    computed = loss(config, *every_token(config, q, P))
    assert_equal(computed, expected.sum())
    assert_equal(gradient(computed, theta), gradient(expected, theta))


@EVERY_LAMBDA
def test_a_larger_support_with_a_bucket_never_lowers_the_divergence_and_the_full_one_bounds_it(
    reverse_weight: float,
) -> None:
    q = logits(0).log_softmax(-1)
    values = []
    for k in range(1, VOCABULARY + 1):
        config = topk(topk=k, reverse_weight=reverse_weight)
        values.append(loss(config, *every_token(config, q, P)))
    steps = torch.stack(values).diff()
    assert values[0] > 0 and (steps[:-1] > 1e-6).all()  # the last: of V - 1 tokens and a bucket to all V
    assert_equal(values[-1], mixture(q, P, reverse_weight).sum())


@EVERY_LAMBDA
def test_renormalised_both_sides_sum_to_one_on_the_support(reverse_weight: float) -> None:
    theta = logits(0)
    q, top = theta.log_softmax(-1), P.topk(3).indices
    config = topk(tail="renormalise", reverse_weight=reverse_weight)
    inside_q, inside_p = q.gather(-1, top), P.gather(-1, top)
    expected = mixture(
        inside_q - inside_q.exp().sum(-1, keepdim=True).log(),
        inside_p - inside_p.exp().sum(-1, keepdim=True).log(),
        reverse_weight,
    )
    computed = loss(config, *every_token(config, q, P))
    assert_equal(computed, expected.sum())
    assert_equal(gradient(computed, theta), gradient(expected, theta))


def test_renormalised_there_is_no_gradient_off_the_support() -> None:
    theta = logits(0)
    top = P.topk(3).indices
    off = torch.ones_like(P, dtype=torch.bool).scatter(-1, top, False)
    assert_equal(step(topk(tail="renormalise", reverse_weight=1.0), theta, P)[off], torch.zeros(8).double())
    assert step(topk(reverse_weight=1.0), theta, P)[off].abs().min() > 1e-3


@EVERY_LAMBDA
def test_dropped_the_sum_stops_at_the_support_and_may_be_negative(reverse_weight: float) -> None:
    theta = logits(0)
    q, top = theta.log_softmax(-1), P.topk(3).indices
    config = topk(tail="drop", reverse_weight=reverse_weight)
    expected = mixture(q.gather(-1, top), P.gather(-1, top), reverse_weight)
    computed = loss(config, *every_token(config, q, P))
    assert_equal(computed, expected.sum())
    assert_equal(gradient(computed, theta), gradient(expected, theta))
    low, high = log_of(0.1, 0.1, 0.8).unsqueeze(0), log_of(0.45, 0.45, 0.1).unsqueeze(0)
    falls = topk(tail="drop", topk=2, reverse_weight=1.0)
    assert loss(falls, *every_token(falls, low, high)) < -0.1


SUPPORTS = {  # of a student and a teacher at each prefix; -1 is a place that a union did not need
    "student": lambda q, p: q.topk(2).indices,
    "union": lambda q, p: _unions(q.topk(2).indices, p.topk(2).indices),
}


def _unions(a: Tensor, b: Tensor) -> Tensor:
    rows = [sorted({*x, *y}) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    return torch.tensor([row + [-1] * (a.shape[1] + b.shape[1] - len(row)) for row in rows])


@pytest.mark.parametrize("of", SUPPORTS)
@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
@EVERY_LAMBDA
def test_a_support_given_from_outside_has_each_id_once_and_its_unused_places_count_as_nothing(
    of: str, tail: str, reverse_weight: float
) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    ids = SUPPORTS[of](q, P)
    assert (of == "union") == bool((ids < 0).any())
    config = topk(topk_of=of, tail=tail, topk=2, reverse_weight=reverse_weight)
    expected = torch.stack([_on(row, q[s], P[s], tail, reverse_weight) for s, row in enumerate(ids)])
    computed = loss(config, *every_token(config, q, P, ids=ids))
    assert_equal(computed, expected.sum())
    assert_equal(gradient(computed, theta), gradient(expected, theta))


def _on(ids: Tensor, q: Tensor, p: Tensor, tail: str, reverse_weight: float) -> Tensor:
    """At one prefix, on the used ids alone."""
    used = ids[ids >= 0]
    if tail == "bucket":
        return mixture(merged(q, used), merged(p, used), reverse_weight)
    inside_q, inside_p = q[used], p[used]
    if tail == "renormalise":
        inside_q, inside_p = inside_q - inside_q.exp().sum().log(), inside_p - inside_p.exp().sum().log()
    return mixture(inside_q, inside_p, reverse_weight)


def test_padding_a_support_with_unused_places_changes_neither_value_nor_gradient_of_any_family() -> None:
    theta, top = logits(0), P.topk(3).indices
    padded = torch.cat([top, torch.full((len(top), 4), -1)], -1)
    for family in ("linear", "jsd", "skew", "power"):
        for tail in ("bucket", "renormalise", "drop"):
            config = topk(family=family, tail=tail, reverse_weight=1.0 if family == "power" else 0.7)
            assert_equal(step(config, theta, P, ids=padded), step(config, theta, P, ids=top))


@EVERY_LAMBDA
@pytest.mark.parametrize("cap", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("support", ["full", "topk"])
def test_vocab_element_cuts_each_outcomes_term_from_above_and_the_cut_term_has_no_gradient(
    support: str, cap: float, reverse_weight: float
) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    config = recipe(support=support, topk=3, reverse_weight=reverse_weight, clip={"vocab_element": cap})
    a, b = (q, P) if support == "full" else (merged(q, P.topk(3).indices), merged(P, P.topk(3).indices))
    reverse, forward = a.exp() * (a - b), b.exp() * (b - a)
    assert (reverse > cap).any() and (forward > cap).any() and (reverse < 0).any()
    kept = [torch.where(term > cap, cap, term) for term in (reverse, forward)]
    expected = (reverse_weight * kept[0] + (1 - reverse_weight) * kept[1]).sum(-1)
    computed = loss(config, *every_token(config, q, P))
    assert_equal(computed, expected.sum())
    assert_equal(gradient(computed, theta), gradient(expected, theta))


def test_a_sum_of_cut_terms_may_be_negative() -> None:
    q, p = log_of(0.8, 0.1, 0.1).unsqueeze(0), log_of(0.2, 0.4, 0.4).unsqueeze(0)
    config = recipe(support="full", clip={"vocab_element": 0.05})
    value = loss(config, *every_token(config, q, p))
    assert value.item() == pytest.approx(0.05 + 0.2 * math.log(0.1 / 0.4))


@EVERY_LAMBDA
@pytest.mark.parametrize("support", ["full", "topk"])
def test_token_sum_cuts_the_sum_of_a_token_from_above_and_a_cut_token_has_no_gradient(
    support: str, reverse_weight: float
) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    a, b = (q, P) if support == "full" else (merged(q, P.topk(3).indices), merged(P, P.topk(3).indices))
    free = mixture(a, b, reverse_weight)
    cap = free.median().item() + 1e-3
    config = recipe(support=support, topk=3, reverse_weight=reverse_weight, clip={"token_sum": cap})
    computed = loss(config, *every_token(config, q, P))
    assert_equal(computed, torch.where(free > cap, cap, free).sum())
    expected = gradient(free, theta) * (free <= cap).unsqueeze(-1)
    assert_equal(gradient(computed, theta), expected)
    assert (free > cap).any() and expected.abs().max() > 1e-3


@EVERY_LAMBDA
@pytest.mark.parametrize("bounds", [(-0.5, 0.5), (-1.0, 0.1), (0.2, 0.3)])
def test_a_log_ratio_clip_bounds_l_before_the_signal_is_formed(
    reverse_weight: float, bounds: tuple[float, float]
) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    bounded = (P - q).detach().clamp(*bounds)
    signal = reverse_weight * bounded + (1 - reverse_weight) * (bounded.exp() - 1)
    expected = gradient(-q.detach().exp() * signal * q, theta)
    assert_equal(step(recipe(reverse_weight=reverse_weight, clip=bounds), theta, P), expected)


def test_a_scalar_clip_is_a_symmetric_interval() -> None:
    theta = logits(0)
    scalar, interval = (step(recipe(clip=clip), theta, P) for clip in (0.5, (-0.5, 0.5)))
    assert_equal(scalar, interval)
    assert (scalar - step(recipe(), theta, P)).abs().max() > 1e-3


def test_a_teachers_zero_counts_as_the_floor_in_reverse_and_as_nothing_forward() -> None:
    q, p = log_of(0.5, 0.3, 0.2).unsqueeze(0), log_of(0.6, 0.4, 0.0).unsqueeze(0)
    floored = 0.5 * math.log(0.5 / 0.6) + 0.3 * math.log(0.3 / 0.4) + 0.2 * (math.log(0.2) + 40.0)
    reverse = recipe(support="full", logprob_floor=-40.0)
    assert loss(reverse, *every_token(reverse, q, p)).item() == pytest.approx(floored, abs=1e-9)
    forward = recipe(support="full", reverse_weight=0.0)
    assert_equal(loss(forward, *every_token(forward, q, p)), kl(p[:, :2], q[:, :2]).sum())


def test_a_rounded_teacher_with_its_own_tail_is_normalised_again_and_the_tail_survives() -> None:
    q, p = log_probs(0), (3.0 * log_probs(1)).log_softmax(-1)  # peaked: tails of 3e-6 to 1e-2 of the mass
    top = p.topk(3).indices
    inside, tail = p.gather(-1, top), p.scatter(-1, top, -torch.inf).logsumexp(-1)
    rounded = inside.half().double()
    teacher = torch.cat([rounded, tail.unsqueeze(-1)], -1)
    expected = kl(merged(q, top), teacher - teacher.exp().sum(-1, keepdim=True).log())
    assert_equal(support_kl(q.gather(-1, top), rounded, 1.0, teacher_tail=tail), expected)
    exact, without = (support_kl(q.gather(-1, top), x, 1.0) for x in (inside, rounded))
    assert (expected - exact).abs().max() < 1e-2 < (without - exact).abs().max()


def test_the_public_functions_are_the_recipes_own() -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    assert_equal(token_kl(q, P, 0.3), mixture(q, P, 0.3))
    top = P.topk(2).indices
    assert_equal(support_kl(q.gather(-1, top), P.gather(-1, top), 0.3), mixture(merged(q, top), merged(P, top), 0.3))
    ratio = (P - q).detach()
    assert_equal(log_ratio_signal(q, P, 0.3), 0.3 * ratio + 0.7 * (ratio.exp() - 1.0))
    assert not log_ratio_signal(q, P, 0.3).requires_grad


@pytest.mark.parametrize("clip", [0.4, 1, np.float32(0.4), torch.tensor(0.4)], ids=type)
def test_the_pure_functions_take_a_scalar_clip_too(clip: Any) -> None:
    q, interval = log_probs(0), (-float(clip), float(clip))
    assert (log_ratio_signal(q, P, 0.3) != log_ratio_signal(q, P, 0.3, clip)).any()
    for weight, family in ((0.3, Family("linear")), (0.5, Family("jsd")), (0.7, Family("skew"))):
        assert_equal(log_ratio_signal(q, P, weight, clip), log_ratio_signal(q, P, weight, interval))
        assert_equal(family_signal(q, P, weight, family, clip), family_signal(q, P, weight, family, interval))
        assert_equal(expected_signal(q, P, weight, family, clip), expected_signal(q, P, weight, family, interval))


@pytest.mark.parametrize("clip", [0.0, -1.0, (1.0, 1.0), (2.0, -2.0), float("nan")])
def test_a_clip_that_is_no_interval_is_refused(clip: Any) -> None:
    with pytest.raises(ValueError, match=r"clip .* is no interval; give a positive number of nats"):
        log_ratio_signal(log_probs(0), P, 0.3, clip)


def test_an_unknown_tail_is_refused() -> None:
    with pytest.raises(ValueError, match="tail 'cut' is unknown"):
        support_kl(P, P, 1.0, tail="cut")
