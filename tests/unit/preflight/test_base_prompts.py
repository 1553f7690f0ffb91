"""Prompts of a base that the learner scores: no scorer's limits hold them, and every held-out set has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.load import RecipeError
from orchestrator.preflight.files import read_inputs
from tests.tiny import CONTEXT
from tests.unit.recipes import loaded


def changes(models: dict[str, Path], prompts: dict[str, Path], system: str) -> dict[str, Any]:
    return {
        "models": {"student": {"path": str(models["student"])}, "base": {"weights": "base", "system": system}},
        "objective.target": "base",
        "learner.lora": {"rank": 4, "targets": ["q_proj"]},
        "learner.dtype": "float32",
        "data.prompts": str(prompts["train"]),
        "data.heldout": str(prompts["heldout"]),
        "evaluate": {"sets": {"more": {"prompts": str(prompts["heldout"]), "teachers": True}}},
        "rollout.max_context_tokens": 128,
    }


def test_the_base_has_its_own_prompts_in_every_set(models: dict[str, Path], prompts: dict[str, Path]) -> None:
    inputs = read_inputs(loaded(changes(models, prompts, "be brief")))
    for prompt in (inputs.train[0], inputs.heldout[0], inputs.sets["more"][0]):
        assert len(prompt.ids["base"]) > len(prompt.ids["student"])


def test_a_prompt_that_exceeds_the_bases_positions_is_refused(
    models: dict[str, Path], prompts: dict[str, Path]
) -> None:
    with pytest.raises(RecipeError, match=f"exceeds the {CONTEXT} positions of models.base; shorten it, or set data"):
        read_inputs(loaded(changes(models, prompts, "be brief. " * 40)))
