"""What is read of a batch: the two KLs of its support, unclipped, over tokens with loss, held by no graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.objective import build
from objectives.schedule import dials_at
from tests.objectives.enumeration import (
    assert_equal,
    every_token,
    kl,
    log_of,
    log_probs,
    logits,
    loss,
    merged,
    metrics,
    recipe,
    scores,
)

P = log_probs(1)


def one_a_prefix(config: Any, q: Tensor, models: Any, **given: Any) -> dict[str, Tensor]:
    """Readings of one token at each prefix."""
    student, tokens = every_token(config, q, models, **given)
    first = slice(0, None, q.shape[-1])
    return metrics(config, student[first], tokens[first])


def entropy(log_p: Tensor) -> Tensor:
    return -kl(log_p, torch.zeros_like(log_p))


@pytest.mark.parametrize("axes", [{}, {"family": "jsd", "reverse_weight": 0.3}, {"clip": {"token_sum": 1e-3}}])
def test_on_full_support_they_are_the_two_kls_and_the_entropy_whatever_is_minimised(axes: dict[str, Any]) -> None:
    q = log_probs(0)
    found = one_a_prefix(recipe(support="full", **axes), q, P)
    expected = {"reverse_kl": kl(q, P), "forward_kl": kl(P, q), "entropy": entropy(q)}
    for name, value in expected.items():
        assert_equal(found[name], value.sum())


def test_on_topk_support_they_are_the_kls_over_k_plus_one_categories() -> None:
    q, top = log_probs(0), P.topk(3).indices
    found = one_a_prefix(recipe(support="topk", topk=3), q, P)
    assert_equal(found["reverse_kl"], kl(merged(q, top), merged(P, top)).sum())
    assert_equal(found["forward_kl"], kl(merged(P, top), merged(q, top)).sum())
    assert_equal(found["topk_mass_teacher"], P.gather(-1, top).exp().sum())
    assert_equal(found["topk_mass_student"], q.gather(-1, top).exp().sum())
    shared = [len({*a} & {*b}) / 3 for a, b in zip(q.topk(3).indices.tolist(), top.tolist(), strict=True)]
    assert found["topk_overlap"].item() == pytest.approx(sum(shared)) and 0 < sum(shared) < 4


@pytest.mark.parametrize("axes", [{}, {"support": "full"}, {"target": "none", "outcome": {"weight": 1.0}}], ids=str)
def test_the_distance_to_the_start_is_read_beside_any_objective_and_enters_no_loss(axes: dict[str, Any]) -> None:
    theta, start = logits(0), log_probs(5)
    q, config = theta.log_softmax(-1), recipe(**axes)
    plain, tokens = every_token(config, q, {"teacher": P, "start": start}, drawn=torch.arange(q.numel()) % 3 > 0)
    drawn = tokens.drawn
    exact, rows = (
        scores("full", start.repeat_interleave(q.shape[-1], 0), tokens.token_ids),
        start.repeat_interleave(5, 0),
    )
    with_start = replace(tokens, scores=tokens.scores | {"start": exact})
    for kind, expected in (
        ("exact", {"start_kl": 5 * kl(q, start).sum()}),
        ("sampled", {"start_k1": (plain - rows).gather(-1, tokens.token_ids[:, None])[drawn].sum()}),
    ):
        built, dials = build(config, kind), dials_at(config, 1)
        streams = built.read(plain, with_start, dials)
        found = built.metrics(streams, with_start, dials)
        assert_equal({name: found[name] for name in found if name.startswith("start")}, expected)
        assert_equal(built.loss(streams, with_start, dials), loss(config, plain, tokens))


def test_several_teachers_are_read_as_their_weighted_mean() -> None:
    q, models = log_probs(0), {"a": P, "b": log_probs(2)}
    found = one_a_prefix(recipe(target={"a": 3.0, "b": 1.0}, support="full"), q, models)
    assert_equal(found["reverse_kl"], (0.75 * kl(q, P) + 0.25 * kl(q, models["b"])).sum())


def test_on_sampled_support_there_is_k1_and_k3_and_no_forward_kl() -> None:
    q = log_probs(0)
    found = one_a_prefix(recipe(), q, P)
    l = (P - q)[:, 0]  # noqa: E741
    assert_equal(found["k1"], -l.sum())
    assert_equal(found["k3"], (l.exp() - 1 - l).sum())
    assert "forward_kl" not in found and "reverse_kl" not in found


def test_a_clip_changes_no_reading_but_says_how_many_tokens_it_cut() -> None:
    q = log_probs(0)
    free, cut = (metrics(config, *every_token(config, q, P)) for config in (recipe(), recipe(clip=0.5)))
    l = P - q  # noqa: E741
    assert_equal(cut.pop("clipped"), (l.abs() > 0.5).double().sum())
    assert cut.keys() == free.keys()
    for name, value in free.items():
        assert_equal(cut[name], value)


def test_a_teachers_zero_counts_as_the_floor() -> None:
    q, p = log_of(0.5, 0.5).unsqueeze(0), log_of(1.0, 0.0).unsqueeze(0)
    found = metrics(recipe(logprob_floor=-40.0), *every_token(recipe(), q, p))
    assert_equal(found["k1"], q.sum() + 40.0)


def test_the_reference_is_read_as_k1() -> None:
    q, ref = log_probs(0), log_probs(5)
    config = recipe(target="none", outcome={"weight": 1.0}, reference={"model": "ref", "beta": 0.1})
    assert_equal(metrics(config, *every_token(config, q, {"ref": ref}))["reference_k1"], (q - ref).sum())


def test_no_weight_scales_a_reading_and_no_graph_holds_it() -> None:
    for support in ("sampled", "topk", "full"):
        config = recipe(support=support, topk=3)
        student, tokens = every_token(config, logits(0).log_softmax(-1), P)
        doubled = replace(tokens, weights={name: 2 * weight for name, weight in tokens.weights.items()})
        for name, value in metrics(config, student, tokens).items():
            assert_equal(metrics(config, student, doubled)[name], value)
            assert not value.requires_grad


def test_the_kl_is_kept_by_position_in_buckets_that_double() -> None:
    q = log_probs(0, 1, 6)
    p = log_probs(1, 1, 6)
    position = torch.tensor([0, 1, 2, 3, 4, 100])
    on = torch.tensor([True, True, True, True, True, False])
    found = metrics(recipe(), *every_token(recipe(), q, p, position=position, on=on))
    k1 = (q - p)[0]
    parts = {1: k1[:1], 2: k1[1:2], 4: k1[2:4], 8: k1[4:5]}
    for end, part in parts.items():
        assert_equal(found[f"position_kl/{end}"], part.sum())
        assert found[f"position_count/{end}"] == len(part)
    counted = {name for name, count in found.items() if name.startswith("position_count") and count}
    assert counted == {f"position_count/{end}" for end in parts}
    assert found["off_loss"] == 1
