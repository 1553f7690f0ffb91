"""Combinations that are warned about, and the nearest neighbours of refused ones: these load without a word."""

from __future__ import annotations

import pytest

from configs import rules
from tests.unit.configs.combinations import (
    COLOCATED,
    GATE,
    IN_TURNS,
    LADDER,
    OTHER,
    PRIVILEGED,
    REFERENCE,
    REJECTION,
    SCHEDULE,
    Changes,
    with_objective,
)
from tests.unit.configs.kinds import WIDE
from tests.unit.recipes import CROSS_ENTROPY, REWARD_ONLY, REWARDED, loaded

# --- warned ---

WARNED: dict[str, tuple[Changes, str]] = {
    "_forward_on_the_students_support": (
        with_objective(support="topk", topk_of="student", reverse_weight=0.5),
        "objective.topk_of: forward KL on the student's top-k is nearly blind to what the teacher has and the student",
    ),
    "_reverse_on_a_renormalised_support": (
        with_objective(support="topk", tail="renormalise"),
        "objective.tail: renormalised reverse KL has no gradient off the support: mass that leaves it never comes back",
    ),
    "_dropped_tail": (
        with_objective(support="topk", tail="drop"),
        "objective.tail: 'drop' is no divergence: it may be negative and falls as mass leaves the support; use bucket",
    ),
    "_clipped_forward": (
        with_objective(clip=5, reverse_weight=0.9),
        "objective.clip: a clipped sampled forward KL no longer covers the teacher's modes; use support: topk or full",
    ),
    "_clipped_extrapolation": (
        OTHER | with_objective(extrapolate={"base": "other", "weight": 1.5}, clip=5),
        "objective.clip: without its normaliser the extrapolated target's log-ratio is off by a number of its prefix",
    ),
    "_divided_beta": (
        REWARDED
        | {"batch.samples_per_prompt": 2}
        | with_objective(reference=REFERENCE, outcome={"weight": 1.0, "baseline": "mean", "scale": "std"}),
        "objective.outcome.scale: dividing by the group's std divides reference.beta too; scale: none keeps J exact",
    ),
    "_scorer_turns_without_a_gpu": (
        IN_TURNS | {"scorer.teacher": {"turns": "gpu"}, "scorer.other": {"turns": "gpu"}},
        "scorer.teacher.turns: none of teacher, other has a share of a GPU, so turns free nothing and scorers wait for",
    ),
    "_turns_without_a_gpu": (
        {"colocate": True, "learner.zero_stage": 1},
        "colocate: no role has a share of a GPU, so turns free nothing and roles wait for each other; remove it",
    ),
    "_arguments_that_one_template_lacks": (
        {"models.student.template": {"enable_thinking": False}},
        "models.teacher.template: lacks the student's enable_thinking, so that it reads another kind of prompt; give",
    ),
    "_key_in_clear": (
        {"scorer.teacher": {"engine": "server", "server": {"address": "http://far:1", "token_file": "/key"}}}
        | with_objective(support="sampled"),
        "scorer.teacher.server.address: its key goes to far in clear; use https",
    ),
}


@pytest.mark.parametrize("rule", WARNED)
def test_a_rarely_intended_combination_loads_with_a_warning(rule: str) -> None:
    changes, message = WARNED[rule]
    (said,) = rules.warnings(loaded(changes))
    assert said.startswith(message)


def test_every_warning_is_tested() -> None:
    assert list(WARNED) == [rule.__name__ for rule in rules.WARNED]


# --- the nearest neighbours ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        CROSS_ENTROPY,
        CROSS_ENTROPY | with_objective(prefix="teacher"),
        CROSS_ENTROPY | {"sampling.temperature": 0.7, "sampling.top_p": 0.9},
        REJECTION,
        REJECTION | {"sampling.temperature": 0.7},
        REWARD_ONLY,
        REWARD_ONLY | {"sampling.temperature": 0.7},
        REWARD_ONLY | with_objective(reference=REFERENCE),
        REWARDED | with_objective(support="full"),
        with_objective(estimator="k2_in_loss"),
        with_objective(estimator="k3_in_loss", reverse_weight=0.0),
        with_objective(discount=1.0),
        with_objective(prefix="dataset", support="topk"),
        with_objective(prefix={"student": SCHEDULE | {"end": 0.0}, "dataset": 0.5}, support="full"),
        with_objective(trust={"truncation": None}),
        with_objective(trust={"truncation": None}, support="full") | {"max_staleness": 2},
        {"max_staleness": 2},
        with_objective(support="full") | {"sampling.temperature": 0.7, "sampling.top_p": 0.9},
        with_objective(support="full", baseline="exact"),
        with_objective(family="power"),
        with_objective(family="jsd", reverse_weight=SCHEDULE, scale="unit"),
        with_objective(family="jsd", reverse_weight=0.0),
        with_objective(reverse_weight=SCHEDULE | {"start": 1.0, "end": 0.0}),
        OTHER | with_objective(extrapolate={"base": "other", "weight": 1.5}),
        OTHER | with_objective(extrapolate={"base": "other", "weight": 1.5}, reverse_weight=0.0, support="full"),
        OTHER | with_objective(extrapolate={"base": "other", "weight": 1.5}, clip=5, support="full", baseline="exact"),
        PRIVILEGED,
        {"models.teacher": {"weights": "ema"}},
        with_objective(support="topk", topk=256) | {"scorer.teacher": {"engine": "vllm"}},
        with_objective(support="topk", topk_of="student"),
        with_objective(support="topk", topk_of="union", reverse_weight=0.5),
        with_objective(support="topk", tail="renormalise", reverse_weight=0.5),
        with_objective(clip=5),
        REWARDED
        | {"batch.samples_per_prompt": 2}
        | with_objective(outcome={"weight": 1.0, "baseline": "rloo"}, reference=REFERENCE),
        REWARDED
        | {"batch.samples_per_prompt": 2}
        | with_objective(
            outcome={"weight": 1.0, "baseline": "mean", "scale": "std"}, reference=REFERENCE | {"placement": "loss_k2"}
        ),
        {"rollout.tensor_parallel": 2, "rollout.resources": {"gpus": 2}},
        {"scorer.teacher": {"engine": "vllm", "tensor_parallel": 2, "resources": {"gpus": 2}}},
        {"rollout": {"resources": {"gpus": 1}, "kinds": WIDE}},
        {"scorer.teacher": {"engine": "vllm", "resources": {"gpus": 1}, "kinds": WIDE}},
        {"teacher_rollout.kinds": {"far": {"members": 2, "resources": {"labels": {"zone": "a"}}}}},
        {"learner.resources": {"placement": "strict_pack"}, "rollout.resources": {"placement": "strict_spread"}},
        IN_TURNS,
        COLOCATED | {"learner.ranks": 2, "learner.resources": {"gpus": 0.51}},
        COLOCATED | {"learner.zero_stage": 3, "learner.offload_optimizer": "cpu"},
        {"sampling.max_response_tokens": 511},
        with_objective(length=LADDER | {"caps": [8, 16]}),
        with_objective(length=LADDER | {"gate": GATE | {"eval_length": 16}}) | {"data.heldout": "/h"},
        {"models.unused": {"path": "/u"}},
        {"objective.end_tokens": "class"},
        CROSS_ENTROPY | with_objective(prefix="teacher", end_tokens="class"),
        OTHER
        | REWARDED
        | with_objective(end_tokens="class", reference=REFERENCE | {"model": "other"})
        | {"scorer.other.engine": "vllm"},
        {"metrics.start_kl": "sampled", "scorer.start.engine": "vllm"},
        REWARD_ONLY | {"metrics.start_kl": "exact", "sampling.temperature": 0.7},
        CROSS_ENTROPY | {"metrics.start_kl": "exact"},
    ],
    ids=str,
)
def test_the_nearest_valid_combinations_load_without_a_warning(changes: Changes) -> None:
    recipe = loaded(changes)
    assert (rules.biases(recipe), rules.warnings(recipe)) == ((), ())
