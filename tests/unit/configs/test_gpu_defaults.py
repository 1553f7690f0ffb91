"""A role with GPUs has other defaults; what a user wrote stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.load import RecipeError, dump_recipe, parse_recipe
from configs.node import UNSIZED
from configs.reading import yaml_tree
from configs.reading.gpu_defaults import BATCH, ROLES, SCORER, with_gpu_defaults
from configs.schema import Recipe
from tests.unit.simulation import recipe

GPU: dict[str, Any] = {"resources": {"gpus": 1}}
LEARNER: dict[str, Any] = {"optimizer": {"lr": 1e-5}}


def tree(**changes: Any) -> dict[str, Any]:
    base = {
        "run": {"name": "r", "root": "/runs", "steps": 1},
        "models": {"student": {"path": "/s"}, "teacher": {"path": "/t"}},
        "data": {"prompts": "/p"},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher", "support": "full"},
        "learner": LEARNER,
    }
    return base | changes


def test_each_role_with_gpus_has_its_own_defaults_and_the_others_keep_theirs() -> None:
    with_gpus = parse_recipe(tree(rollout=GPU, scorer={"teacher": GPU}, learner=LEARNER | GPU, reward=GPU))
    plain = parse_recipe(tree())
    assert (with_gpus.rollout.eager, with_gpus.rollout.max_concurrent) == (False, UNSIZED)
    assert (plain.rollout.eager, plain.rollout.max_concurrent) == (True, 64)
    assert (with_gpus.scorer_of("teacher").tokens_per_batch, plain.scorer_of("teacher").tokens_per_batch) == (
        UNSIZED,
        1024,
    )
    assert with_gpus.learner.tokens_per_chunk == 2048 and with_gpus.batch.tokens_per_microbatch == UNSIZED
    assert (
        plain.learner.rows_per_chunk(49_152) * 49_152 * 4
        <= 2**28
        < (plain.learner.rows_per_chunk(49_152) + 1) * 196_608
    )
    assert with_gpus.learner.rows_per_chunk(49_152) == 2048 and plain.batch.tokens_per_microbatch == 512
    alone = parse_recipe(tree(rollout=GPU))
    assert alone.batch == plain.batch and not alone.rollout.eager and alone.teacher_rollout.eager


def test_what_a_user_wrote_stays_and_a_resolved_recipe_reads_back_equal() -> None:
    own = parse_recipe(tree(rollout=GPU | {"eager": True, "max_concurrent": 8}, learner=LEARNER | GPU))
    assert (own.rollout.eager, own.rollout.max_concurrent) == (True, 8)
    assert parse_recipe(yaml_tree.parse(dump_recipe(own), "own")) == own
    assert recipe(Path("/none")).rollout.eager  # members without GPUs


def test_every_key_is_one_of_its_role() -> None:
    for role, defaults in {**ROLES, "batch": BATCH}.items():
        fields = Recipe.model_fields[role].annotation.model_fields  # type: ignore[union-attr]
        assert all(key in fields and fields[key].default != value for key, value in defaults.items())
    assert parse_recipe(tree(scorer={"teacher": GPU})).scorer_of("teacher").model_dump().items() >= SCORER.items()


@pytest.mark.parametrize("role", [None, 7, [], {"resources": 3}, {"resources": {"gpus": "all"}}, {"resources": None}])
def test_a_tree_that_is_no_recipe_is_left_to_the_schema(role: Any) -> None:
    wrong = tree(rollout=role, scorer=role, learner=role, batch=role)
    assert with_gpu_defaults(wrong) == wrong
    with pytest.raises(RecipeError):
        parse_recipe(wrong)
