"""`logratio probe` on real engines: a teacher that is the student has nothing to say, a stranger asks for SFT first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.surface.measuring import advice

ROOT = Path(__file__).parents[2]
SMALL = {"max_context_tokens": 96, "resources": {"cpus": 0.1}}

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]  # minutes of real engines


def probed(models: dict[str, Path], prompts: Path, teacher: str, root: Path) -> dict[str, Any]:
    tree = {
        "run": {"name": "probed", "root": str(root), "steps": 2},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models[teacher])}},
        "data": {"prompts": str(prompts)},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 24},
        "objective": {"target": "teacher"},
        "learner": {"optimizer": {"lr": 0.05}, "resources": {"cpus": 0.1}},
        "rollout": SMALL,
        "scorer": {"teacher": SMALL},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "orchestrator.cli", "probe", str(root / "recipe.yaml"), "--responses", "32"]
    command += ["--out", str(root / "probe.json")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800.0, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return json.loads((root / "probe.json").read_text())


@pytest.mark.parametrize(
    ("teacher", "expected"), [("student", advice.NOTHING), ("teacher", advice.SFT_FIRST)], ids=["itself", "stranger"]
)
def test_a_pair_is_recognised(
    models: dict[str, Path], prompts: dict[str, Path], teacher: str, expected: str, tmp_path: Path
) -> None:
    found = probed(models, prompts["train"], teacher, tmp_path)
    measured = found["measured"]
    assert found["recommendation"] == expected, measured
    assert measured["responses"] == 32 and measured["effective_sample_size"] > 0.9 and measured["entropy"] > 0.0
    assert found["cost"]["step_seconds"] > 0.0 and found["cost"]["gpu_hours"] == 0.0
    assert not list((tmp_path).glob("probed.probe-*/checkpoints/*"))
