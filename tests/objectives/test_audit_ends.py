"""The audit with end tokens as a class: two end tokens, one outcome, and the KLs of outcomes as what is promised."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from audit import audit
from audit.bench import Bench
from audit.estimate import cosine, estimate, production
from audit.tree import grow, world
from audit.verdicts import known
from objectives import objective
from objectives.schedule import dials_at
from tests.objectives.enumeration import assert_equal, recipe

HELD_BACK = {"model": "ref", "beta": 0.3, "placement": "exact"}
RECIPES: list[tuple[dict[str, Any], str]] = [
    ({}, "token reverse KL"),
    ({"reverse_weight": 0.0}, "token forward KL"),
    ({"support": "full", "reverse_weight": 0.3}, "0.3 reverse + 0.7 forward KL"),
    ({"discount": 1.0}, "reverse KL with discount 1"),
    ({"support": "full", "baseline": "exact"}, "token reverse KL"),
    ({"support": "full", "extrapolate": {"base": "base", "weight": 1.5}}, "token reverse KL"),
    ({"target": {"a": 0.4, "b": 0.6}, "support": "full"}, "token reverse KL"),
    ({"prefix": "teacher", "support": "full", "reverse_weight": 0.0}, "token forward KL"),
    ({"trust": {"kind": "ppo"}}, "token reverse KL"),
    ({"family": "power", "alpha": 0.5}, "power divergence, alpha 0.5"),
    ({"outcome": {"weight": 1.0}, "reference": HELD_BACK}, "token reverse KL + -E[R] + beta KL to the reference"),
]


@pytest.mark.parametrize(("axes", "target"), RECIPES, ids=[str(axes) for axes, _ in RECIPES])
def test_a_recipe_has_the_gradient_of_outcomes(axes: dict[str, Any], target: str) -> None:
    found = audit(recipe(end_tokens="class", **axes))
    assert found.target == target and found.bias == pytest.approx(0.0, abs=1e-9)
    assert found.findings == ()
    assert any("two end tokens" in note for note in found.notes)


@pytest.mark.parametrize("topk_of", ["teacher", "student"])
def test_a_topk_has_that_of_k_tokens_the_class_and_a_tail(topk_of: str) -> None:
    found = audit(recipe(end_tokens="class", support="topk", topk_of=topk_of))
    assert found.findings == ()
    assert {match.target: match.cosine for match in found.matches}["top-k reverse KL with its tail"] == pytest.approx(
        1.0
    )


def test_a_dropped_tail_is_still_found() -> None:
    assert audit(recipe(end_tokens="class", support="topk", tail="drop")).findings


def test_the_gradient_is_not_that_of_tokens() -> None:
    """Two end tokens that are not merged, or merged where they should not be, are told apart."""
    config = recipe(end_tokens="class", support="full")
    bench = Bench(world(("teacher",), 0, ends=2), config, dials_at(config, 1))
    plain = Bench(bench.world, recipe(support="full"), bench.dials)
    merged, separate = (known(b)["token reverse KL"] for b in (bench, plain))
    assert cosine(merged, separate) < 0.999
    measured = estimate(
        production(objective.build(config, None, bench.ends), bench),
        [(1.0, bench.enumerated("student"))],
        bench.world.student,
    )
    assert cosine(measured.mean, merged) == pytest.approx(1.0, abs=1e-12)


def test_the_language_of_outcomes_is_that_of_one_end_token() -> None:
    two = world(("teacher",), 3, ends=2)
    bench = Bench(two, recipe(end_tokens="class"), dials_at(recipe(), 1))
    assert two.tree.ends == (3, 4) and bench.outcome_tree.ends == (3,)
    assert (two.tree.children[:, :3] == grow().children[:, :3]).all()
    for policy in (two.student, two.older, two.models["teacher"]):
        assert_equal(two.tree.of_responses(policy).exp().sum(), torch.tensor(1.0).double())
        assert_equal(bench.outcome_tree.of_responses(bench.outcomes(policy)).exp().sum(), torch.tensor(1.0).double())
        assert_equal(bench.outcome_tree.visits(bench.outcomes(policy)), two.tree.visits(policy))
