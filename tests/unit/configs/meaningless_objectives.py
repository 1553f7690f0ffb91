"""Objectives without a meaning, by the rule that refuses them, each with the beginning of its refusal."""

from __future__ import annotations

from tests.unit.configs.combinations import (
    LIVE,
    OTHER,
    PRIVILEGED,
    REFERENCE,
    REJECTION,
    SCHEDULE,
    Changes,
    with_objective,
)
from tests.unit.recipes import CROSS_ENTROPY, REMOVED, REWARD_ONLY, REWARDED

OF_OBJECTIVES: dict[str, list[tuple[Changes, str]]] = {
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
}
