"""Combinations with adapters that have no meaning, by the rule that refuses them."""

from __future__ import annotations

from tests.unit.configs.combinations import Changes, with_objective

ADAPTED: Changes = {"learner.lora": {"rank": 4}, "models.base": {"weights": "base", "system": "be brief"}}
TARGET = ADAPTED | with_objective(target="base")

OF_ADAPTERS: dict[str, list[tuple[Changes, str]]] = {
    "_base_without_adapters": [
        (
            {"models.base": {"weights": "base"}},
            "models.base.weights: 'base' is the student without its adapters",
        )
    ],
    "_base_is_the_student": [
        (
            TARGET | {"models.base": {"weights": "base"}},
            "models.base: the base behind the student's own prompt is the student as it starts, nothing to learn",
        )
    ],
    "_base_scores": [
        (TARGET | {"scorer.base": {"members": 2}}, "scorer.base: the learner itself scores the student's base; remove"),
        (TARGET | with_objective(target="base", support="topk"), "objective.support: 'topk' of models.base"),
        (
            ADAPTED | with_objective(target={"field": "topic", "models": {"a": "teacher", "b": "base"}}),
            "objective.target: a route leads to scorers, and the learner scores models.base",
        ),
        (
            TARGET | with_objective(target="base", end_tokens="class"),
            "objective.end_tokens: models.base is the student's base and ends as it does; set it to same",
        ),
        (
            ADAPTED
            | with_objective(target={"base": 1.0, "teacher": 1.0})
            | {"stream_tokens": 4, "early_stop": {"log_ratio": -1.0, "after_tokens": 4}},
            "early_stop: models.base is scored by the learner",
        ),
        (TARGET | {"stream_tokens": 4}, "stream_tokens: no scorer reads segments; the learner scores the base"),
    ],
}
