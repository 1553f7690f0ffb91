"""Every family: the sampled signal has the mean gradient of the divergence over the vocabulary; limits and ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from tests.objectives import families
from tests.objectives.enumeration import (
    VOCABULARY,
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

Axes = dict[str, Any]
Divergence = Callable[[Tensor, Tensor], Tensor]
P = log_probs(1)


def _points() -> dict[str, tuple[Axes, Divergence]]:
    points: dict[str, tuple[Axes, Divergence]] = {}
    for w in (0.0, 0.3, 0.5, 1.0):
        points[f"linear-{w}"] = ({"reverse_weight": w}, lambda q, p, w=w: mixture(q, p, w))
        for scale in ("none", "unit"):
            axes: Axes = {"family": "jsd", "reverse_weight": w, "scale": scale}
            points[f"jsd-{scale}-{w}"] = (axes, lambda q, p, w=w, unit=scale == "unit": families.jsd(q, p, w, unit))
        for a in (0.1, 0.6):
            axes = {"family": "skew", "reverse_weight": w, "alpha": a}
            points[f"skew-{w}-{a}"] = (axes, lambda q, p, w=w, a=a: families.skew(q, p, w, a))
    for a in (0.2, 1.0):
        points[f"power-{a}"] = ({"family": "power", "alpha": a}, lambda q, p, a=a: families.power(q, p, a))
    return points


POINTS = _points()
EVERY_POINT = pytest.mark.parametrize("axes, divergence", POINTS.values(), ids=POINTS.keys())


@EVERY_POINT
@pytest.mark.parametrize("support", ["sampled", "topk", "full"])
def test_every_support_has_the_gradient_of_the_familys_divergence(
    support: str, axes: Axes, divergence: Divergence
) -> None:
    theta = logits(0)
    config = recipe(support=support, topk=VOCABULARY, **axes)
    assert_equal(step(config, theta, P), gradient(divergence(theta.log_softmax(-1), P), theta))


@EVERY_POINT
def test_the_whole_vocabulary_has_the_familys_value_never_negative_and_zero_where_the_two_agree(
    axes: Axes, divergence: Divergence
) -> None:
    q = logits(0).log_softmax(-1)
    config = recipe(support="full", **axes)
    value = loss(config, *every_token(config, q, P))
    assert_equal(value, divergence(q, P).sum())
    assert value > 1e-3
    assert_equal(loss(config, *every_token(config, P, P)), 0.0 * value)


@EVERY_POINT
def test_the_sampled_signal_is_zero_where_student_and_teacher_agree(axes: Axes, divergence: Divergence) -> None:
    config = recipe(**axes)
    student, tokens = every_token(config, logits(0).log_softmax(-1), P)
    assert_equal(loss(config, P.repeat_interleave(VOCABULARY, 0), tokens), 0.0 * student.sum())


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_jsd_at_its_end_points_is_a_kl(end: float) -> None:
    theta = logits(0)
    q = theta.log_softmax(-1)
    for support in ("sampled", "full"):
        config = recipe(support=support, family="jsd", reverse_weight=end)
        assert_equal(step(config, theta, P), gradient(kl(q, P) if end else kl(P, q), theta))


@pytest.mark.parametrize("end, inside", [(0.0, 1e-6), (1.0, 1.0 - 1e-6)])
@pytest.mark.parametrize("support", ["sampled", "full"])
def test_unit_jsd_is_continuous_at_its_end_points_and_plain_jsd_vanishes_towards_them(
    support: str, end: float, inside: float
) -> None:
    theta = logits(0)

    def at(weight: float, scale: str) -> Tensor:
        return step(recipe(support=support, family="jsd", reverse_weight=weight, scale=scale), theta, P)

    assert (at(inside, "unit") - at(end, "unit")).abs().max() < 1e-4
    assert at(inside, "none").abs().max() < 1e-4 < 1e-2 < at(end, "none").abs().max()


def test_jsd_weighs_the_two_sides_by_lambda_so_its_mirror_swaps_them() -> None:
    q = logits(0).log_softmax(-1)
    there, mirrored = (recipe(support="full", family="jsd", reverse_weight=w) for w in (0.3, 0.7))
    assert_equal(
        loss(there, *every_token(there, q, P)),
        loss(mirrored, *every_token(mirrored, P, q.detach())),
    )


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_skew_tends_to_the_mixture_of_kls_as_alpha_tends_to_zero(weight: float) -> None:
    theta = logits(0)
    for support in ("sampled", "full"):
        config = recipe(support=support, family="skew", alpha=1e-8, reverse_weight=weight)
        expected = gradient(mixture(theta.log_softmax(-1), P, weight), theta)
        assert (step(config, theta, P) - expected).abs().max() < 1e-5
