"""Every combination that is refused or warned about, and its nearest neighbours that mean something.

Each refusal names the key and a remedy; OBJECTIVES.md, "Refused and warned", is the list.
"""

from __future__ import annotations

from typing import Any

import pytest

from configs import rules
from tests.unit.recipes import CROSS_ENTROPY, REMOVED, REWARD_ONLY, REWARDED, RULED, loaded, refusal

Changes = dict[str, Any]
SCHEDULE = {"start": 0.9, "end": 0.1, "steps": 5}
OTHER = {"models.other": {"path": "/o"}}
LIVE = {"models.teacher": {"weights": "live"}}
PRIVILEGED = {"models.teacher": {"weights": "live", "system": "Answer: 42."}}
GATE = {"eval_length": 8, "minimum": 0.5}
LADDER = {"caps": [4, 8], "steps_per_stage": 2}
REFERENCE = {"model": "teacher", "beta": 0.1}
REJECTION = REWARDED | {
    "objective.target": "data",
    "objective.reverse_weight": 0.0,
    "objective.outcome": {"combine": "gate"},
}


def with_objective(**changes: Any) -> Changes:
    return {f"objective.{key}": value for key, value in changes.items()}


# --- biased: refused, and run by name ---

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


# --- meaningless: always refused ---

SIGN = {"weight": 1.0, "combine": "sign"}
COLOCATED = {
    "colocate": True,
    "learner.zero_stage": 2,
    "learner.resources": {"gpus": 0.6},
    "rollout.resources": {"gpus": 0.4},
}
MEANINGLESS: dict[str, list[tuple[Changes, str]]] = {
    "_unknown_models": [
        ({"models.student": REMOVED}, "models: no model named 'student'; add models.student.path"),
        (
            {"models.student": {"weights": "live"}},
            "models.student.weights: the student is what is trained; leave them frozen, its path is where it starts",
        ),
        (
            with_objective(target="nobody"),
            "objective.target: 'nobody' names no model (nobody); allowed: ['teacher', 'data', 'none']",
        ),
        (with_objective(target="student"), "objective.target: 'student' names no model (student); allowed: ['teacher'"),
        (with_objective(target={"teacher": 1.0, "nobody": 1.0}), "objective.target: 'nobody' names no model"),
        (
            with_objective(target={"field": "topic", "models": {"a": "teacher", "b": "nobody"}}),
            "objective.target: 'nobody' names no model",
        ),
        (
            with_objective(extrapolate={"base": "nobody", "weight": 1.5}),
            "objective.extrapolate.base names no model (nobody); allowed: ['teacher'",
        ),
        (
            REWARDED | with_objective(reference={"model": "student", "beta": 1.0}),
            "objective.reference.model names no model (student); allowed: ['teacher'",
        ),
        ({"scorer.other": {}}, "scorer.other: no such model; allowed: ['teacher']"),
        ({"scorer.student": {}}, "scorer.student: no such model; allowed: ['teacher']"),
    ],
    "_writers": [
        (
            CROSS_ENTROPY | {"objective.prefix": "teacher", "models.teacher": REMOVED},
            "objective.prefix: 'teacher' has no model to write with; add one to models",
        ),
    ],
    "_weighted_targets": [
        (with_objective(target={}), "objective.target: names no model; give one, 'data' or 'none'"),
        (
            OTHER | with_objective(target={"teacher": 1.0, "other": 0.0}),
            "objective.target: a weight of 0 or less is no teacher; remove it, or give it a positive weight",
        ),
    ],
    "_nothing_to_learn": [
        (
            with_objective(target="data", reverse_weight=0.0, prefix={"student": 0.5, "dataset": 0.5}),
            "objective.target: 'data' on the student's own samples",
        ),
        (
            with_objective(target="none"),
            "objective.target: 'none' without outcome.weight leaves nothing to learn; name a teacher or set the weight",
        ),
        (
            CROSS_ENTROPY | with_objective(support="topk"),
            "objective.support: target: data is the response's own tokens; set support: sampled",
        ),
        (
            CROSS_ENTROPY | with_objective(reverse_weight=1.0),
            "objective.reverse_weight: cross-entropy is forward KL to the data; set it to 0",
        ),
        (
            CROSS_ENTROPY | with_objective(clip=5),
            "objective.clip: cross-entropy has no log-ratio; remove clip, discount and baseline",
        ),
        (CROSS_ENTROPY | with_objective(discount=0.5), "objective.clip: cross-entropy has no log-ratio; remove"),
        (CROSS_ENTROPY | with_objective(baseline="exact"), "objective.clip: cross-entropy has no log-ratio; remove"),
        (
            CROSS_ENTROPY | with_objective(prefix="student"),
            "objective.target: 'data' on the student's own samples has no gradient in expectation; set prefix: dataset",
        ),
        (
            REJECTION | {"reward.rules": []},
            "objective.outcome.combine: gate needs reward.rules or reward.model to select by",
        ),
    ],
    "_clips_of_supports": [
        (
            with_objective(support="topk", clip=5),
            "objective.clip.log_ratio: bounds the sampled log-ratio; remove it, set support: sampled, or use",
        ),
        (
            with_objective(clip={"vocab_element": 0.05}),
            "objective.clip: vocab_element and token_sum cut a divergence; they need support: topk or full",
        ),
        (
            with_objective(clip={"token_sum": 1.0}, support="full", baseline="exact"),
            "objective.clip: vocab_element and token_sum cut a divergence",
        ),
        (
            REWARD_ONLY | with_objective(clip=5),
            "objective.clip.log_ratio: bounds the log-ratio in estimator: reward to a teacher; remove it",
        ),
        (with_objective(clip=5, estimator="k2_in_loss"), "objective.clip.log_ratio: bounds the log-ratio in estimator"),
    ],
    "_axes_without_part": [
        (with_objective(estimator="k2_in_loss", baseline="value"), "objective.baseline: is of the reward's signal"),
        (
            {
                "reward.rules": [{"kind": "length"}],
                **with_objective(target="none", baseline="value", outcome={"weight": 1}),
            },
            "objective.baseline: is of the signal to a teacher",
        ),
        (
            {"sampling.top_p": 0.5, **with_objective(support="topk", topk_of="student")},
            "sampling.top_p: below 1 the sampler ranks only its nucleus",
        ),
        (with_objective(baseline="value", support="full"), "objective.baseline: 'value' is of the sampled signal"),
        (with_objective(family="power", clip=1.0), "objective.clip.log_ratio: the power family's signal is bounded"),
        (with_objective(loss="a.b:c", reverse_weight=0.5), "objective.loss: decides by itself"),
        (
            with_objective(support="full", estimator="k2_in_loss"),
            "objective.estimator, objective.discount: are of the sampled signal to a teacher; set support: sampled and",
        ),
        (with_objective(support="topk", discount=1.0), "objective.estimator, objective.discount: are of the sampled"),
        (REWARD_ONLY | with_objective(discount=1.0), "objective.estimator, objective.discount: are of the sampled"),
        (
            with_objective(baseline="exact", support="topk"),
            "objective.baseline: 'exact' needs the teacher's whole distribution; set support: full",
        ),
        (REWARD_ONLY | with_objective(baseline="exact", support="full"), "objective.baseline: 'exact' needs the teach"),
        (with_objective(topk_of="student"), "objective.topk_of: 'student' needs support: topk"),
        (with_objective(tail="drop", support="full"), "objective.tail: 'drop' needs support: topk"),
        (
            with_objective(topk_of="union", support="topk", prefix="dataset"),
            "objective.topk_of: 'union' is taken where the student samples; set prefix: student",
        ),
        (
            CROSS_ENTROPY | with_objective(loss="mine:loss"),
            "objective.loss: replaces the divergence to a teacher; name one in objective.target",
        ),
        (
            with_objective(loss="mine:loss", estimator="k2_in_loss"),
            "objective.estimator: objective.loss decides how the log-ratio is used; remove one of them",
        ),
    ],
    "_families": [
        (
            with_objective(family="power", reverse_weight=0.5),
            "objective.reverse_weight: the power family has no second direction; set it to 1",
        ),
        (with_objective(family="power", reverse_weight=SCHEDULE), "objective.reverse_weight: the power family"),
        (
            with_objective(family="jsd", reverse_weight=SCHEDULE | {"end": 0.0}),
            "objective.reverse_weight: a jsd schedule that touches 0 or 1 jumps there (the divergence vanishes towards",
        ),
        (
            with_objective(family="jsd", reverse_weight=SCHEDULE | {"start": 1.0}),
            "objective.reverse_weight: a jsd schedule that touches 0 or 1",
        ),
        (
            with_objective(scale="unit"),
            "objective.scale: 'unit' divides a jsd by its own weight; it needs family: jsd",
        ),
        (
            with_objective(family="skew", alpha=1.0),
            "objective.alpha: 1 skews the mixture beyond the student; keep it under 1",
        ),
    ],
    "_estimators": [
        (
            with_objective(estimator="k3_in_loss"),
            "objective.reverse_weight: k3_in_loss has the gradient of the forward KL alone; set it to 0",
        ),
        (
            with_objective(estimator="k2_in_loss", reverse_weight=0.5),
            "objective.reverse_weight: k2_in_loss has the gradient of the reverse KL alone; set it to 1",
        ),
        (with_objective(estimator="k2_in_loss", family="jsd"), "objective.reverse_weight: k2_in_loss has the gradient"),
    ],
    "_extrapolations": [
        (
            OTHER | with_objective(extrapolate={"base": "other", "weight": 1.5}, support="topk"),
            "objective.extrapolate: needs one teacher and support: sampled or full",
        ),
        (
            OTHER | with_objective(target={"teacher": 1, "other": 1}, extrapolate={"base": "other", "weight": 2}),
            "objective.extrapolate: needs one teacher and support: sampled or full",
        ),
        (
            OTHER | with_objective(extrapolate={"base": "other", "weight": 1.5}, reverse_weight=0.0),
            "objective.extrapolate: on sampled support the target is known up to its normaliser,",
        ),
    ],
    "_self_distillation": [
        (
            LIVE,
            "models.teacher: live weights behind the student's own prompt are the student, nothing to learn; give it a",
        ),
        (
            REWARD_ONLY | PRIVILEGED | with_objective(reference=REFERENCE),
            "models.teacher: a live reference holds back nothing; use weights: frozen or ema",
        ),
        (
            PRIVILEGED | {"scorer.teacher": {"engine": "vllm"}},
            "scorer.teacher.engine: 'vllm' keeps its weights; a moving teacher needs engine: torch",
        ),
        (
            {"models.teacher": {"weights": "ema"}} | with_objective(prefix="teacher", support="full"),
            "objective.prefix: responses of a moving teacher cannot be kept; use a frozen teacher or prefix: student",
        ),
    ],
    "_swaps": [
        ({"models.student.swaps": {2: "/b"}}, "models.student.swaps: no scorer serves it; allowed: ['teacher']"),
        (
            {"models.teacher": {"weights": "ema", "swaps": {2: "/b"}}},
            "models.teacher.swaps: its ema weights follow the student; remove them, or freeze it",
        ),
        (
            {"models.teacher.swaps": {2: "/b"}} | with_objective(prefix="teacher", reverse_weight=0.0),
            "models.teacher.swaps: it also writes responses, and its writers keep their weights; remove them",
        ),
        ({"models.teacher.swaps": {3: "/b"}}, "models.teacher.swaps: 3 is beyond the last step, 2"),
    ],
    "_end_tokens": [
        (
            REWARD_ONLY | {"objective.end_tokens": "class"},
            "objective.end_tokens: 'class' joins the student's with a target's, and there is none; set it to same",
        ),
        (CROSS_ENTROPY | {"objective.end_tokens": "class"}, "objective.end_tokens: 'class' joins the student's"),
        (
            {"objective.end_tokens": "class", "scorer.teacher.engine": "vllm"},
            "scorer.teacher.engine: 'vllm' gives the mass of its likeliest tokens, and objective.end_tokens: class "
            "needs that of every end token; use engine: torch",
        ),
        (
            OTHER
            | with_objective(end_tokens="class", extrapolate={"base": "other", "weight": 1.5})
            | {"scorer.other.engine": "vllm"},
            "scorer.other.engine: 'vllm' gives the mass of its likeliest tokens",
        ),
        (
            REWARDED | with_objective(end_tokens="class", reference=REFERENCE),
            "objective.reference.model: 'teacher' is a target as well, and with end_tokens: class scores classes where",
        ),
    ],
    "_start_kl": [
        (
            {"metrics.start_kl": "sampled", "models.start": {"path": "/o"}},
            "models.start: with metrics.start_kl it is the student as it starts; give your model another name",
        ),
        (
            {"metrics.start_kl": "exact", "objective.target": "start"},
            "models.start: with metrics.start_kl it is the student as it starts; give your model another name",
        ),
        (
            CROSS_ENTROPY | {"metrics.start_kl": "sampled"},
            "metrics.start_kl: 'sampled' reads what the student draws, and others write here; set it to exact",
        ),
        (
            REWARD_ONLY | {"metrics.start_kl": "sampled", "sampling.temperature": 0.7},
            "metrics.start_kl: at temperature 0.7, top_p 1 'sampled' reads tokens that are not drawn from",
        ),
        (
            {"metrics.start_kl": "sampled", "sampling.top_p": 0.9, "objective.support": "full"},
            "metrics.start_kl: at temperature 1, top_p 0.9 'sampled' reads tokens that are not drawn",
        ),
    ],
    "_supports_of_engines": [
        (
            {"metrics.start_kl": "exact", "scorer.start.engine": "vllm"},
            "scorer.start.engine: 'vllm' has no hidden states; support: full needs engine: torch",
        ),
        (
            with_objective(support="full") | {"scorer.teacher": {"engine": "vllm"}},
            "scorer.teacher.engine: 'vllm' has no hidden states; support: full needs engine: torch",
        ),
        (
            with_objective(support="topk", topk_of="union") | {"scorer.teacher": {"engine": "vllm"}},
            "scorer.teacher.engine: 'vllm' ranks its own tokens only; topk_of: union needs torch",
        ),
        (
            with_objective(support="topk", topk=257) | {"scorer.teacher": {"engine": "vllm"}},
            "objective.topk: 257 exceeds the 256 of engine: vllm; use torch",
        ),
        (
            with_objective(support="topk", topk=257, topk_of="student"),
            "objective.topk: 257 exceeds the 256 that the rollout engine returns",
        ),
    ],
    "_outcomes": [
        (
            {"batch.updates": 2, **with_objective(estimator="k2_in_loss")},
            "batch.updates: more than one pass needs a sampled signal",
        ),
        (
            {"reward.rules": [{"kind": "length"}], **with_objective(loss="a.b:c", outcome=SIGN)},
            "objective.outcome.combine: 'sign' gives the log-ratio",
        ),
        (
            {"reward.rules": [{"kind": "length"}], **with_objective(outcome={**SIGN, "baseline": "value"})},
            "objective.outcome.baseline: 'sign' reads a response's advantage",
        ),
        (
            {"reward.rules": [{"kind": "length"}], **with_objective(outcome={**SIGN, "truncated": "mask"})},
            "objective.outcome.truncated: under combine: sign",
        ),
        (
            with_objective(outcome={"weight": 1}),
            "objective.outcome.weight: no reward.rules to earn it; add a rule or a reward.model, or set it to 0",
        ),
        (
            REWARDED | with_objective(prefix="dataset", support="full"),
            "objective.outcome.weight: rewards need the student's own samples; set prefix: student",
        ),
        (
            REWARDED | with_objective(outcome={"weight": 1.0, "baseline": "rloo"}),
            "objective.outcome.baseline: a group baseline needs batch.samples_per_prompt > 1, or baseline: none",
        ),
        (with_objective(outcome={"baseline": "mean"}), "objective.outcome.baseline: a group baseline needs batch."),
        (
            with_objective(outcome={"scale": "std"}),
            "objective.outcome.scale: one sample has no spread; set batch.samples_per_prompt > 1, or scale: none",
        ),
        (
            REWARDED
            | {"batch.samples_per_prompt": 2}
            | with_objective(outcome={"weight": 1.0, "baseline": "value", "scale": "std"}),
            "objective.outcome.scale: 'std' is a group's, a value baseline looks at no group; set scale: none",
        ),
        (
            RULED | with_objective(outcome={"combine": "gate"}),
            "objective.outcome.combine: 'gate' joins a teacher and a reward; it needs both",
        ),
        (
            REWARD_ONLY | with_objective(outcome={"weight": 1.0, "combine": "switch", "switch_step": 3}),
            "objective.outcome.combine: 'switch' joins a teacher and a reward; it needs both",
        ),
        (
            REJECTION | with_objective(prefix={"student": 0.5, "dataset": 0.5}),
            "objective.outcome.combine: 'gate' selects by advantage, which only the student's own samples have; ",
        ),
        (
            REWARDED | with_objective(outcome={"weight": 1.0, "combine": "sign"}, support="full"),
            "objective.outcome.combine: 'sign' gives the log-ratio of the sampled token a sign; set support: sampled",
        ),
        (
            with_objective(support="full") | {"batch.updates": 2},
            "batch.updates: more than one pass needs a sampled signal; this objective has no ratio to hold it",
        ),
        (
            with_objective(support="full", trust={"kind": "ppo"}),
            "objective.trust.kind: 'ppo' bounds a policy gradient; this objective has none",
        ),
    ],
    "_value_heads": [
        ({"learner.value_head": {"lr": 3e-4}}, "learner.value_head: nothing reads its values; set baseline or outcome"),
    ],
    "_references": [
        (
            with_objective(reference=REFERENCE),
            "objective.reference: holds back a reward; set outcome.weight, or make the model a target",
        ),
        (
            REWARDED
            | OTHER
            | with_objective(outcome={"weight": 1.0, "combine": "sign"}, reference={"model": "other", "beta": 0.1}),
            "objective.reference.placement: under combine: sign no reward is left to hold back; use loss_k2 or exact",
        ),
    ],
    "_split_engines": [
        (
            {"rollout.tensor_parallel": 2},
            "rollout.tensor_parallel: 2 needs rollout.resources.gpus: 2, found 0",
        ),
        (
            {"teacher_rollout.tensor_parallel": 4, "teacher_rollout.resources": {"gpus": 1}},
            "teacher_rollout.tensor_parallel: 4 needs teacher_rollout.resources.gpus: 4, found 1",
        ),
    ],
    "_colocations": [
        (
            COLOCATED | {"max_staleness": 1},
            "colocate: learner and rollouts take turns, so nothing can run ahead; set max_staleness: 0, found 1",
        ),
        (
            COLOCATED | {"rollout.resources": {"gpus": 2}, "rollout.tensor_parallel": 2},
            "rollout.resources.gpus: 2 leaves no room for others on its GPU; under colocate give each role a share",
        ),
        (
            COLOCATED | {"scorer.teacher": {"resources": {"gpus": 1}}},
            "scorer.teacher.resources.gpus: 1 leaves no room for others on its GPU",
        ),
        (
            COLOCATED | {"learner.ranks": 2, "learner.resources": {"gpus": 0.5}},
            "learner.resources.gpus: two ranks of 0.5 may come to lie on one GPU, which NCCL refuses",
        ),
        (COLOCATED | {"learner.zero_stage": 0}, "learner.zero_stage: DeepSpeed moves no states under 0"),
        (
            COLOCATED | {"learner.zero_stage": 3},
            "learner.offload_optimizer: under zero_stage: 3 DeepSpeed moves no optimizer but its own",
        ),
    ],
    "_streams": [
        (
            {"early_stop": {"log_ratio": -2.0, "after_tokens": 32}},
            "early_stop: judges a response by the segments scored so far; set stream_tokens, or remove it",
        ),
        (
            {"rollout.on_update": "abort", "rollout.keep_key_values": True},
            "rollout.keep_key_values: under on_update: abort no running response has any left; use on_update: keep",
        ),
    ],
    "_autoscales": [
        (
            {"autoscale": {"learner": {"min": 1, "max": 2}}},
            "autoscale.learner: no elastic role of this recipe; allowed: ['rollout', 'scorer.teacher', 'reward']",
        ),
        (
            {"autoscale": {"scorer": {"min": 1, "max": 2}}},
            "autoscale.scorer: no elastic role of this recipe; allowed: ['rollout', 'scorer.teacher', 'reward']",
        ),
        (
            {"rollout.members": 5, "autoscale": {"rollout": {"min": 1, "max": 4}}},
            "autoscale.rollout: rollout.members: 5 is outside [1, 4]; start with a number inside",
        ),
        (
            {"autoscale": {"scorer.teacher": {"min": 2, "max": 4}}},
            "autoscale.scorer.teacher: scorer.teacher.members: 1 is outside [2, 4]; start with a number inside",
        ),
    ],
    "_contexts": [
        (
            {"sampling.max_response_tokens": 512},
            "sampling.max_response_tokens: 512 leaves no room for a prompt in rollout.max_context_tokens: 512",
        ),
        (
            with_objective(length=LADDER | {"caps": [8, 32]}),
            "objective.length.caps: 32 exceeds sampling.max_response_tokens: 16, for which room is made; raise that",
        ),
        (
            with_objective(length=LADDER | {"gate": GATE | {"eval_length": 17}}),
            "objective.length.gate.eval_length: 17 exceeds sampling.max_response_tokens",
        ),
        (
            with_objective(length=LADDER | {"gate": GATE}),
            "objective.length.gate: the entropy is measured on held-out prompts; give data.heldout",
        ),
        (
            REWARD_ONLY
            | {"data.heldout": "/h", "sampling.temperature": 0.7}
            | with_objective(length=LADDER | {"gate": GATE}),
            "objective.length.gate: the entropy is that of responses sampled at temperature 1; set sampling",
        ),
    ],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [pytest.param(*case, id=f"{rule}-{i}") for rule, cases in MEANINGLESS.items() for i, case in enumerate(cases)],
)
def test_a_meaningless_combination_is_refused(changes: Changes, message: str) -> None:
    assert refusal(changes).startswith(message)


def test_bounds_of_autoscaling_are_in_order_and_of_at_least_one_member() -> None:
    swapped = refusal({"autoscale": {"reward": {"min": 3, "max": 2}}})
    assert swapped.startswith("autoscale.reward: min 3 is above max 2; swap them")
    assert refusal({"autoscale": {"reward": {"min": 0, "max": 2}}}).startswith("autoscale.reward.min: 0 is wrong")
    bounds = loaded({"rollout.members": 4, "autoscale": {"rollout": {"min": 1, "max": 4}}}).autoscale["rollout"]
    assert (bounds.min, bounds.max) == (1, 4)


def test_every_rule_is_tested() -> None:
    assert list(MEANINGLESS) == [rule.__name__ for rule in rules.MEANINGLESS]


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
    "_turns_without_a_gpu": (
        {"colocate": True, "learner.zero_stage": 1},
        "colocate: no role has a share of a GPU, so turns free nothing and roles wait for each other; remove it",
    ),
    "_arguments_that_one_template_lacks": (
        {"models.student.template": {"enable_thinking": False}},
        "models.teacher.template: lacks the student's enable_thinking, so that it reads another kind of prompt; give",
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
