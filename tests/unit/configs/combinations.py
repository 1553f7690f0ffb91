"""Parts of recipes that tests of refusals and warnings combine."""

from __future__ import annotations

from typing import Any

from tests.unit.recipes import REWARDED

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


SIGN = {"weight": 1.0, "combine": "sign"}
IN_TURNS = {  # two scorers on one GPU
    **OTHER,
    "objective.target": {"teacher": 0.5, "other": 0.5},
    "scorer.teacher": {"turns": "gpu", "resources": {"gpus": 0.5}},
    "scorer.other": {"turns": "gpu", "resources": {"gpus": 0.5}},
}
COLOCATED = {
    "colocate": True,
    "learner.zero_stage": 2,
    "learner.resources": {"gpus": 0.6},
    "rollout.resources": {"gpus": 0.4},
}
