"""Combinations that compute something else than their name promises: refused, and run if they are allowed by name."""

from __future__ import annotations

import pytest

from configs import rules
from tests.unit.configs.combinations import REFERENCE, REJECTION, SCHEDULE, Changes, with_objective
from tests.unit.recipes import REWARD_ONLY, REWARDED, loaded, refusal

BIASED: list[tuple[str, Changes, str]] = [
    (
        "k1_in_loss",
        with_objective(estimator="k1_in_loss"),
        "objective.estimator: k1_in_loss has no gradient in expectation, the teacher drops out; use estimator: reward",
    ),
    (
        "k3_in_reward",
        with_objective(estimator="k3_in_reward"),
        "objective.estimator: k3_in_reward has the gradient of reverse minus forward KL; use estimator: reward (",
    ),
    (
        "sampled_off_policy",
        with_objective(prefix="dataset"),
        "objective.support: sampled estimators on prefix: dataset score tokens the student did not draw; use support: ",
    ),
    (
        "sampled_off_policy",
        with_objective(prefix="teacher"),
        "objective.support: sampled estimators on prefix: teacher score tokens the student did not draw; use support: ",
    ),
    (
        "sampled_off_policy",
        with_objective(prefix={"student": 0.9, "dataset": 0.1}),
        "objective.support: sampled estimators on prefix: dataset score tokens the student did not draw; use support: ",
    ),
    (
        "sampled_off_policy",
        with_objective(prefix="dataset", support="full", baseline="exact"),
        "objective.support: sampled estimators on prefix: dataset",
    ),
    (
        "sampled_off_policy",
        with_objective(trust={"truncation": None}) | {"max_staleness": 2},
        "objective.trust.truncation: null leaves samples of up to 2 versions ago without their ratio; give a cap",
    ),
    (
        "tempered_sampling",
        {"sampling.temperature": 0.7},
        "sampling: temperature 0.7, top_p 1 draw tokens from another distribution than the student's; use 1.0 and 1.0,",
    ),
    ("tempered_sampling", {"sampling.top_p": 0.9}, "sampling: temperature 1, top_p 0.9 draw tokens from another"),
    (
        "tempered_sampling",
        REWARD_ONLY | {"sampling.top_p": 0.9},
        "sampling: temperature 1, top_p 0.9 draw tokens from another distribution",
    ),
    (
        "tempered_sampling",
        REWARD_ONLY | {"sampling.temperature": 0.7, "objective.reference": REFERENCE},
        "sampling: temperature 0.7, top_p 1 draw",
    ),
    (
        "tempered_sampling",
        REWARDED | {"sampling.temperature": 0.7, "objective.support": "full"},
        "sampling: temperature 0.7, top_p 1 draw",
    ),
    (
        "tempered_sampling",
        REJECTION | {"objective.outcome": {"combine": "gate", "weight": 1.0}, "sampling.temperature": 0.7},
        "sampling: temperature 0.7, top_p 1 draw",
    ),
    (
        "tempered_sampling",
        {"sampling.temperature": 0.7, "objective.support": "full", "objective.baseline": "exact"},
        "sampling: temperature 0.7, top_p 1 draw",
    ),
    (
        "discounted_forward",
        with_objective(discount=0.9, reverse_weight=0.5),
        "objective.discount: only the log-ratio reward (linear, reverse_weight: 1) has a return;",
    ),
    ("discounted_forward", with_objective(discount=1.0, reverse_weight=SCHEDULE), "objective.discount: only"),
    ("discounted_forward", with_objective(discount=1.0, family="skew"), "objective.discount: only the log-ratio"),
    ("discounted_forward", with_objective(discount=1.0, estimator="k2_in_loss"), "objective.discount: only the log"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BIASED, ids=str)
def test_a_biased_combination_is_refused_with_the_name_that_allows_it(
    name: str, changes: Changes, message: str
) -> None:
    said = refusal(changes)
    assert said.startswith(message)
    assert said.endswith(f"(for a study: objective.allow_biased: [{name}])")


@pytest.mark.parametrize(("name", "changes", "message"), BIASED, ids=str)
def test_an_allowed_biased_combination_loads_and_is_reported(name: str, changes: Changes, message: str) -> None:
    assert rules.biases(loaded(changes | with_objective(allow_biased=[name]))) == (name,)


def test_every_bias_is_tested() -> None:
    assert {name for name, _, _ in BIASED} == rules.BIASED.keys()


def test_an_allowed_bias_that_the_recipe_lacks_is_not_reported() -> None:
    assert rules.biases(loaded(with_objective(allow_biased=["k1_in_loss"]))) == ()


def test_allowing_one_bias_does_not_allow_another() -> None:
    both = with_objective(estimator="k1_in_loss", allow_biased=["tempered_sampling"]) | {"sampling.top_p": 0.5}
    assert "allow_biased: [k1_in_loss]" in refusal(both)
    named = loaded(both | with_objective(allow_biased=["k1_in_loss", "tempered_sampling"]))
    assert rules.biases(named) == ("k1_in_loss", "tempered_sampling")


def test_an_unknown_bias_is_refused_with_the_known_ones() -> None:
    said = refusal(with_objective(allow_biased=["k1_in_loss", "k9"]))
    assert said.startswith("objective.allow_biased: ['k9'] are no names of biases; allowed: [")
    assert all(repr(name) in said for name in rules.BIASED)


def test_a_meaningless_combination_is_refused_whatever_is_allowed() -> None:
    assert "reward.rules" in refusal(with_objective(outcome={"weight": 1.0}, allow_biased=list(rules.BIASED)))
