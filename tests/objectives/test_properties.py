"""Properties over drawn distributions: bounds, finiteness in float32, and symmetry in the vocabulary."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.enumeration import (
    assert_equal,
    every_token,
    extreme_pairs,
    gradient,
    logit_pairs,
    loss,
    metrics,
    proven_by_examples,
    recipe,
)

weights = st.sampled_from([0.0, 1.0]) | st.floats(0.001, 0.999)
FAMILIES: dict[str, dict[str, Any]] = {
    "linear": {},
    "jsd": {"family": "jsd"},
    "jsd-unit": {"family": "jsd", "scale": "unit"},
    "skew": {"family": "skew"},
    "power": {"family": "power", "alpha": 0.5},
}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def axes(family: str, weight: float) -> dict[str, Any]:
    return {**FAMILIES[family], "reverse_weight": 1.0 if family == "power" else weight}


@EVERY_FAMILY
@proven_by_examples
@given(pair=logit_pairs(), weight=weights, data=st.data())
def test_with_the_bucket_a_divergence_is_never_negative_nor_above_the_full_one(
    family: str, pair: tuple[Tensor, Tensor], weight: float, data: st.DataObject
) -> None:
    q, p = (x.log_softmax(-1) for x in pair)
    k = data.draw(st.integers(1, p.shape[-1]))
    topk = recipe(support="topk", topk=k, **axes(family, weight))
    full = recipe(support="full", **axes(family, weight))
    value, bound = loss(topk, *every_token(topk, q, p)), loss(full, *every_token(full, q, p))
    assert value >= -1e-9
    if family != "power":  # a Bregman divergence, which merging outcomes may raise
        assert value <= bound + 1e-9


@EVERY_FAMILY
@proven_by_examples
@given(pair=logit_pairs(), weight=weights)
def test_sampled_and_full_have_one_gradient(family: str, pair: tuple[Tensor, Tensor], weight: float) -> None:
    theta, p = pair[0].requires_grad_(), pair[1].log_softmax(-1)
    configs = [recipe(support=support, **axes(family, weight)) for support in ("sampled", "full")]
    steps = [gradient(loss(c, *every_token(c, theta.log_softmax(-1), p)), theta) for c in configs]
    torch.testing.assert_close(*steps, rtol=1e-7, atol=1e-8)


@EVERY_FAMILY
@proven_by_examples
@given(pair=logit_pairs(), weight=weights, random=st.randoms(use_true_random=False))
def test_a_divergence_does_not_know_the_order_of_the_vocabulary(
    family: str, pair: tuple[Tensor, Tensor], weight: float, random: Random
) -> None:
    q, p = (x.log_softmax(-1) for x in pair)
    order = torch.tensor(random.sample(range(q.shape[-1]), q.shape[-1]))
    for support in ("topk", "full"):
        config = recipe(support=support, topk=2, **axes(family, weight))
        ids = torch.tensor([[0, 1]])
        moved = order.argsort()[ids]
        straight = loss(config, *every_token(config, q, p, ids=ids))
        assert_equal(loss(config, *every_token(config, q[:, order], p[:, order], ids=moved)), straight)


# --- finite in float32: a student 20 times as sure as is usual, a teacher with zeros ---

SUPPORTS: dict[str, dict[str, Any]] = {
    "sampled": {},
    "clipped": {"clip": 2.0},
    "exact-baseline": {"support": "full", "baseline": "exact"},
    "full": {"support": "full"},
    "full-cut": {"support": "full", "clip": {"vocab_element": 0.05, "token_sum": 1.0}},
    "bucket": {"support": "topk", "topk": 2},
    "renormalise": {"support": "topk", "topk": 2, "tail": "renormalise"},
    "drop": {"support": "topk", "topk": 2, "tail": "drop"},
    "all-by-topk": {"support": "topk", "topk": 7},
}
ESTIMATORS = ("k1_in_loss", "k2_in_loss", "k3_in_loss", "k3_in_reward")
few_weights = st.sampled_from([0.0, 1e-4, 0.5, 1.0])


def all_finite(config: Any, pair: tuple[Tensor, Tensor], **given: Any) -> None:
    theta, p = pair[0].requires_grad_(), pair[1].log_softmax(-1)
    student, tokens = every_token(config, theta.log_softmax(-1), {"teacher": p, "base": p.flip(-1)}, **given)
    value = loss(config, student, tokens)
    assert value.dtype == torch.float32 and value.isfinite()
    assert gradient(value, theta).isfinite().all()
    assert all(reading.isfinite().all() for reading in metrics(config, student, tokens).values())


@pytest.mark.parametrize("support", SUPPORTS)
@EVERY_FAMILY
@proven_by_examples
@given(pair=extreme_pairs(), weight=few_weights)
def test_values_gradients_and_readings_are_finite(
    support: str, family: str, pair: tuple[Tensor, Tensor], weight: float
) -> None:
    all_finite(recipe(**SUPPORTS[support], **axes(family, weight)), pair)


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
@EVERY_FAMILY
@proven_by_examples
@given(pair=extreme_pairs(), weight=few_weights)
def test_they_are_on_a_support_with_unused_places(
    tail: str, family: str, pair: tuple[Tensor, Tensor], weight: float
) -> None:
    config = recipe(support="topk", topk_of="union", tail=tail, topk=2, **axes(family, weight))
    best = pair[0].argmax(-1, keepdim=True)
    all_finite(config, pair, ids=torch.cat([best, torch.full_like(best, -1)], -1))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@proven_by_examples
@given(pair=extreme_pairs())
def test_they_are_for_every_estimator(estimator: str, pair: tuple[Tensor, Tensor]) -> None:
    all_finite(recipe(estimator=estimator), pair)


@pytest.mark.parametrize("support", ["sampled", "full"])
@proven_by_examples
@given(pair=extreme_pairs())
def test_they_are_for_an_extrapolated_teacher(support: str, pair: tuple[Tensor, Tensor]) -> None:
    all_finite(recipe(extrapolate={"base": "base", "weight": 1.5}, support=support), pair)
