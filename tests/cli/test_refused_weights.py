"""Weights that a role cannot compute with: exit 1 as they are loaded, in one line that names the model, the number and
the remedy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_kill_and_resume import _logratio
from tests.unit.models.test_loading import UP, spoilt

SMALL: dict[str, Any] = {"cpus": 0.1, "threads": 1}
REAL = {"student": "actors.learning.learner:Learner", "teacher": "actors.scoring.scorer:Scorer"}


def recipe(tmp_path: Path, models: dict[str, Path], prompts: dict[str, Path], real: dict[str, Any]) -> dict[str, Any]:
    """Of a run that joins the tests' cluster; roles without an engine in `real`, by model, are simulated."""
    import ray

    role = {"dtype": "float32", "resources": SMALL}
    return {
        "run": {"name": "bad", "root": str(tmp_path), "steps": 1},
        "cluster": {"address": ray.get_runtime_context().gcs_address},
        "models": {name: {"path": str(path)} for name, path in models.items()},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher", "support": "sampled"},
        "learner": role | real.get("student", {}) | {"optimizer": {"lr": 0.1}},
        "rollout": role | {"max_context_tokens": 64},
        "scorer": {"teacher": role | real.get("teacher", {}) | {"max_context_tokens": 64}},
        "reward": {"resources": SMALL},
    }


def failed(tree: dict[str, Any], tmp_path: Path) -> str:
    """The one line that the run failed with, exit 1."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    run = _logratio("run", str(tmp_path / "recipe.yaml"), module=("tests.cli.simulated", "0.0"))
    output, _ = run.communicate(timeout=280)
    assert run.returncode == 1 and "Traceback" not in output, output
    (said,) = [line for line in output.splitlines() if line.startswith("logratio: ")]
    return said.removeprefix("logratio: the run failed: ")


@pytest.mark.acceptance  # the check itself is tests/unit/models/test_loading.py
@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["student", "teacher"])
def test_weights_that_are_not_finite_are_exit_1_as_they_are_loaded(
    ray_cluster: None, models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path, model: str
) -> None:
    """By a learner, and by a scorer: all other roles are simulated."""
    bad = spoilt(models[model], tmp_path / "bad", UP, 3, math.nan)
    paths = {"student": models["student"], "teacher": models["teacher"]} | {model: bad}
    tree = recipe(tmp_path, paths, prompts, {model: {"engine": REAL[model]}})
    assert failed(tree, tmp_path) == f"{bad}: 2 of the 8192 values of {UP} are not finite; copy or export it again"


@pytest.mark.system
@pytest.mark.timeout(300)
def test_weights_that_leak_where_no_copy_does_are_exit_1_as_they_are_loaded(
    ray_cluster: None, models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path
) -> None:
    paths = {"student": models["student"], "teacher": models["teacher"]}
    leaky = {"engine": "tests.cli.leaky:LeakyLearner", "packing": True}
    said = failed(recipe(tmp_path, paths, prompts, {"student": leaky}), tmp_path)
    assert said.startswith(f"{models['student']}: packed sequences are 0.5 nats off the same ones alone: they leak")
    assert said.endswith("set packing: auto, which pads them")
