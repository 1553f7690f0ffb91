"""Losses and metrics of a batch: denominators, chunks, and which tokens count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from torch import Tensor

from configs.schema import Objective as ObjectiveConfig
from objectives import objective
from objectives.objective import Tokens, token_weight
from tests.objectives.enumeration import (
    assert_equal,
    every_token,
    extreme_pairs,
    gradient,
    kl,
    log_of,
    log_probs,
    logits,
    loss,
    merged,
    mixture,
    proven_by_examples,
    recipe,
    select,
)

RECIPES = {
    "sampled": recipe(reverse_weight=0.7, outcome={"weight": 0.5}),
    "topk": recipe(support="topk", topk=3, reverse_weight=0.7),
    "full": recipe(support="full", reverse_weight=0.7),
    "data": recipe(target="data", prefix="dataset", reverse_weight=0.0),
}
EVERY_RECIPE = pytest.mark.parametrize("config", RECIPES.values(), ids=RECIPES.keys())
LENGTHS = (1, 3, 4)


def batch(config: ObjectiveConfig, theta: Tensor) -> Tokens:
    """The enumerated tokens as a batch: equal weights, random advantages, a rollout policy of its own."""
    tokens = every_token(config, theta.log_softmax(-1), log_probs(1), log_probs(2))
    n = len(tokens.weight)
    return replace(tokens, weight=torch.full_like(tokens.weight, 1 / n), advantage=log_probs(3).flatten())


def weights(config: ObjectiveConfig) -> list[Tensor]:
    """Each sequence's weights under the recipe's denominator."""
    return [torch.full((n,), token_weight(config, n, sum(LENGTHS), len(LENGTHS)), dtype=torch.float64) for n in LENGTHS]


def test_token_normalisation_is_the_mean_over_all_tokens() -> None:
    per_token = [torch.arange(n, dtype=torch.float64) + n for n in LENGTHS]
    computed = sum((w * x).sum() for w, x in zip(weights(recipe(normalise="token")), per_token, strict=True))
    assert_equal(computed, torch.cat(per_token).mean())


def test_sequence_normalisation_is_the_mean_of_the_sequences_means() -> None:
    per_token = [torch.arange(n, dtype=torch.float64) + n for n in LENGTHS]
    computed = sum((w * x).sum() for w, x in zip(weights(recipe(normalise="sequence")), per_token, strict=True))
    assert_equal(computed, torch.stack([x.mean() for x in per_token]).mean())


@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_an_empty_batch_divides_by_no_zero(normalise: str) -> None:
    assert token_weight(recipe(normalise=normalise), 0, 0, 0) == 1.0


@pytest.mark.parametrize("size", [1, 3, 7, 19])
@EVERY_RECIPE
def test_chunks_and_micro_batches_change_nothing(config: ObjectiveConfig, size: int) -> None:
    theta = logits(0)
    tokens = batch(config, theta)
    built = objective.build(config)
    chunks = [select(tokens, slice(start, start + size)) for start in range(0, len(tokens.weight), size)]
    whole, parts = built.loss(tokens), sum(built.loss(chunk) for chunk in chunks)
    assert_equal(parts, whole)
    assert_equal(gradient(parts, theta), gradient(whole, theta))
    for name, value in built.metrics(tokens).items():
        assert_equal(sum(built.metrics(chunk)[name] for chunk in chunks), value)


@EVERY_RECIPE
def test_the_order_of_tokens_changes_nothing(config: ObjectiveConfig) -> None:
    tokens = batch(config, logits(0))
    shuffled = select(tokens, torch.randperm(len(tokens.weight), generator=torch.Generator().manual_seed(0)))
    assert_equal(loss(config, shuffled), loss(config, tokens))
    for name, value in objective.build(config).metrics(tokens).items():
        assert_equal(objective.build(config).metrics(shuffled)[name], value)


@EVERY_RECIPE
def test_tokens_of_weight_zero_count_in_neither_loss_gradient_nor_metrics(config: ObjectiveConfig) -> None:
    theta = logits(0)
    tokens = batch(config, theta)
    on = torch.arange(len(tokens.weight)) % 3 > 0
    masked = replace(tokens, weight=tokens.weight * on)
    kept = select(tokens, on)
    assert_equal(loss(config, masked), loss(config, kept))
    assert_equal(gradient(loss(config, masked), theta), gradient(loss(config, kept), theta))
    for name, value in objective.build(config).metrics(masked).items():
        assert_equal(value, objective.build(config).metrics(kept)[name])


@EVERY_RECIPE
def test_metrics_are_sums_that_no_weight_scales_and_no_graph_holds(config: ObjectiveConfig) -> None:
    tokens = batch(config, logits(0))
    doubled = objective.build(config).metrics(replace(tokens, weight=2 * tokens.weight))
    for name, value in objective.build(config).metrics(tokens).items():
        assert value.shape == () and not value.requires_grad
        assert_equal(value, doubled[name])


def test_a_clip_changes_the_loss_and_no_metric() -> None:
    free, clipped = recipe(), recipe(clip=0.1)
    tokens = batch(free, logits(0))
    assert (loss(free, tokens) - loss(clipped, tokens)).abs() > 1e-3
    for name, value in objective.build(free).metrics(tokens).items():
        assert_equal(objective.build(clipped).metrics(tokens)[name], value)


def test_exact_metrics_are_the_two_kls_and_the_two_entropies() -> None:
    q, p = log_probs(0), log_probs(1)
    config = RECIPES["full"]
    tokens = select(every_token(config, q, p), slice(0, None, q.shape[-1]))  # one token a prefix
    metrics = objective.build(config).metrics(tokens)
    expected = {
        "reverse_kl": kl(q, p),
        "forward_kl": kl(p, q),
        "entropy": -kl_to_one(q),
        "teacher_entropy": -kl_to_one(p),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert_equal(metrics[name], value.sum())


def kl_to_one(log_p: Tensor) -> Tensor:
    return kl(log_p, torch.zeros_like(log_p))


def test_topk_metrics_are_the_kls_over_k_plus_one_categories() -> None:
    q, p = log_probs(0), log_probs(1)
    config, top = RECIPES["topk"], p.topk(3).indices
    tokens = select(every_token(config, q, p), slice(0, None, q.shape[-1]))
    metrics = objective.build(config).metrics(tokens)
    assert_equal(metrics["reverse_kl"], mixture(merged(q, top), merged(p, top), 1.0).sum())
    assert_equal(metrics["forward_kl"], mixture(merged(q, top), merged(p, top), 0.0).sum())


def test_the_sampled_metric_is_exact_when_tokens_come_as_often_as_q_says() -> None:
    q, p = log_of(1 / 2, 1 / 4, 1 / 4).unsqueeze(0), log_probs(1, prefixes=1, vocabulary=3)
    tokens = select(every_token(recipe(), q, p), torch.tensor([0, 0, 1, 2]))
    metrics = objective.build(recipe()).metrics(tokens)
    assert_equal(metrics["reverse_kl"] / 4, kl(q, p).sum())
    assert "forward_kl" not in metrics


def test_the_sampled_metric_floors_a_teachers_zero() -> None:
    q, p = log_of(0.5, 0.5).unsqueeze(0), log_of(1.0, 0.0).unsqueeze(0)
    config = recipe(logprob_floor=-40.0)
    metrics = objective.build(config).metrics(every_token(config, q, p))
    assert_equal(metrics["reverse_kl"], q.sum() + 40.0)


@EVERY_RECIPE
@proven_by_examples
@given(pair=extreme_pairs())
def test_losses_and_gradients_are_finite_in_float32(config: ObjectiveConfig, pair: tuple[Tensor, Tensor]) -> None:
    theta, p = pair[0].requires_grad_(), pair[1].log_softmax(-1)
    value = loss(config, every_token(config, theta.log_softmax(-1), p))
    assert value.isfinite() and gradient(value, theta).isfinite().all()


@pytest.mark.parametrize("support", ["topk", "full"])
@proven_by_examples
@given(pair=extreme_pairs())
def test_metrics_are_finite_in_float32(support: str, pair: tuple[Tensor, Tensor]) -> None:
    config = RECIPES[support]
    tokens = every_token(config, pair[0].log_softmax(-1), pair[1].log_softmax(-1))
    metrics = objective.build(config).metrics(replace(tokens, weight=torch.ones_like(tokens.weight)))
    assert torch.stack(list(metrics.values())).isfinite().all()
