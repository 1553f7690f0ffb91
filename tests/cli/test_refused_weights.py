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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["student", "teacher"])
def test_weights_that_are_not_finite_are_exit_1_as_they_are_loaded(
    ray_cluster: None, models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path, model: str
) -> None:
    """By a learner, and by a scorer: all other roles are simulated. The run joins the tests' cluster."""
    import ray

    bad = spoilt(models[model], tmp_path / "bad", UP, 3, math.nan)
    paths = {"student": models["student"], "teacher": models["teacher"]} | {model: bad}
    role = {"dtype": "float32", "resources": SMALL}
    real = {name: {"engine": engine} if name == model else {} for name, engine in REAL.items()}
    tree: dict[str, Any] = {
        "run": {"name": f"bad-{model}", "root": str(tmp_path), "steps": 1},
        "cluster": {"address": ray.get_runtime_context().gcs_address},
        "models": {name: {"path": str(path)} for name, path in paths.items()},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher", "support": "sampled"},
        "learner": role | real["student"] | {"optimizer": {"lr": 0.1}},
        "rollout": role | {"max_context_tokens": 64},
        "scorer": {"teacher": role | real["teacher"] | {"max_context_tokens": 64}},
        "reward": {"resources": SMALL},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    run = _logratio("run", str(tmp_path / "recipe.yaml"), module=("tests.cli.simulated", "0.0"))
    output, _ = run.communicate(timeout=280)
    assert run.returncode == 1, output
    (said,) = [line for line in output.splitlines() if line.startswith("logratio: ")]
    expected = f"{bad}: 2 of the 8192 values of {UP} are not finite; copy or export it again"
    assert said == f"logratio: the run failed: {expected}" and "Traceback" not in output, output
