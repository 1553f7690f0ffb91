"""Which roles of a 7B student fit a card, in numbers that are computed by hand."""

from __future__ import annotations

from typing import Any

from configs.hardware import resolve_dtypes
from configs.schema import Recipe
from orchestrator.preflight import estimates
from orchestrator.preflight.adapters import card_bytes, describe_adapters
from orchestrator.preflight.estimates import Size
from tests.unit.recipes import loaded

PARAMETERS, ADAPTERS, KEY_VALUES = 7_615_616_512, 40_370_176, 28_672
STUDENT = Size(PARAMETERS, 3584, KEY_VALUES, adapters=ADAPTERS, adapted=6_525_288_448)
PLAIN = Size(PARAMETERS, 3584, KEY_VALUES)
GPU = {"resources": {"gpus": 1}}
CARDS: dict[str, Any] = {
    "learner.lora": {"rank": 16},
    "learner.resources": {"gpus": 1},
    "rollout": {**GPU, "max_context_tokens": 2048},
    "scorer.teacher": GPU,
}
OWN: dict[str, Any] = {key: value for key, value in CARDS.items() if key != "scorer.teacher"} | {
    "models.base": {"weights": "base", "system": "be brief"},
    "objective.target": "base",
}


def recipe(changes: dict[str, Any]) -> Recipe:
    return resolve_dtypes(loaded(changes), cpu_has_bf16=True)


def test_a_rank_trains_adapters_and_holds_the_base_once() -> None:
    found = card_bytes(recipe(CARDS), {"student": STUDENT, "teacher": PLAIN})
    weights = 2 * (PARAMETERS + ADAPTERS)
    assert found["learner"] == weights + ADAPTERS * (4 + 8 + 4), "master copy, moments and gradients of adapters alone"
    assert found["rollout"] == weights + 2 * 2048 * KEY_VALUES
    assert found["scorer.teacher"] == 2 * PARAMETERS
    whole = estimates.gpu_rank_bytes(PLAIN, recipe(CARDS).learner)
    assert whole == PARAMETERS * (2 + 4 + 8 + 4) > 4 * found["learner"]


def test_a_scorer_does_not_fit_a_small_card_and_the_base_in_the_learner_does() -> None:
    scored = "\n".join(describe_adapters(recipe(CARDS), {"student": STUDENT, "teacher": PLAIN}))
    assert "40.37 M of 7616 M parameters are trained; a version takes 77.0 MiB" in scored
    assert (
        "24 GiB: by itself learner, rollout, scorer.teacher; all together do not fit; in turns (colocate) they do not"
        in scored
    )
    assert (
        "48 GiB: by itself learner, rollout, scorer.teacher; all together fit; in turns (colocate) they fit" in scored
    )
    own = "\n".join(describe_adapters(recipe(OWN), {"student": STUDENT}))
    assert "24 GiB: by itself learner, rollout; all together do not fit; in turns (colocate) they fit" in own
    assert describe_adapters(recipe({}), {"student": PLAIN}) == []


def test_checkpoints_hold_adapters_and_averages_the_weights_they_adapt() -> None:
    learner = recipe(CARDS).learner
    assert estimates.checkpoint_bytes(STUDENT, learner) == ADAPTERS * (2 + 4 + 8)
    assert estimates.checkpoint_bytes(STUDENT, learner, averages=1) == ADAPTERS * 14 + 4 * 6_525_288_448
