"""`logratio sweep` on a Ray cluster: killed in its second arm and gone on with, and on real engines that stay warm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import agents_of_ray, alive, descendants

pytestmark = pytest.mark.system


def _started(*command: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}  # a person's shell has none
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def _sweep(file: Path, *values: str, pace: str = "0.001") -> subprocess.Popen[str]:
    return _started("tests.cli.simulated", pace, "sweep", str(file), *values)


def _arms(root: Path) -> list[dict[str, Any]]:
    return json.loads((root / "bad" / "sweep.json").read_text())["arms"]


@pytest.mark.acceptance
@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_in_the_arm_that_was_under_way(recipe: dict[str, Any], tmp_path: Path) -> None:
    root, file = tmp_path / "runs", tmp_path / "recipe.yaml"
    recipe["run"]["steps"], recipe["checkpoint"], recipe["cluster"] = 4, {"every": 1}, {"dashboard": False}
    recipe["objective"] = {"target": "teacher"}
    file.write_text(yaml.safe_dump(recipe))
    with _sweep(file, "seed=0,1", pace="0.05") as killed:
        try:
            _until(lambda: len(list(root.glob("bad/*/summary.json"))) == 1, killed)
            first = next(root.glob("bad/*/summary.json")).read_text()
            _until(lambda: len(list(root.glob("bad/*/recipe.yaml"))) == 2, killed)
        finally:
            begun = descendants(killed.pid)
            begun -= agents_of_ray(begun)
            os.kill(killed.pid, signal.SIGKILL)
    _until(lambda: not alive(begun))
    whole = _sweep(file, "seed=0,1")
    said, _ = whole.communicate(timeout=400)
    assert whole.returncode == 0, said
    assert "2 arms: 1 to go, 1 done" in said
    assert [(arm["stands"], arm["exit"]) for arm in _arms(root)] == [("done", 0)] * 2
    assert first in [file.read_text() for file in root.glob("bad/*/summary.json")], "the first arm was left alone"
    again = _sweep(file, "seed=0,1")
    assert "0 to go, 2 done" in again.communicate(timeout=200)[0] and again.returncode == 0


def _until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        assert process is None or process.poll() is None, "it ended by itself"
        time.sleep(0.1)


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(900)
def test_an_arm_on_warm_engines_learns_what_it_learns_alone(recipe: dict[str, Any], tmp_path: Path) -> None:
    root, file = tmp_path / "runs", tmp_path / "recipe.yaml"
    recipe["run"]["steps"], recipe["checkpoint"] = 3, {"every": 3}
    recipe["cluster"] = {"dashboard": False}
    recipe["learner"]["dtype"] = recipe["rollout"]["dtype"] = recipe["scorer"]["teacher"]["dtype"] = "float32"
    recipe["reward"] = {"rules": [{"kind": "length", "low": 1, "high": 4}]}
    file.write_text(yaml.safe_dump(recipe))
    swept = _started("orchestrator.cli", "sweep", str(file), "learner.optimizer.lr=0.1,0.05", "seed=3")
    said, _ = swept.communicate(timeout=500)
    assert swept.returncode == 0, said
    first, second = (root / "bad" / arm["run"] for arm in _arms(root))
    startup = [json.loads((run / "summary.json").read_text())["seconds_startup"] for run in (first, second)]
    assert startup[1] < 0.5 * startup[0], "the second arm starts no engine"
    alone = _started("orchestrator.cli", "run", str(file), "run.name=alone", "learner.optimizer.lr=0.05", "run.seed=3")
    said, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, said
    lines, expected = _lines(second), _lines(root / "alone")
    assert len(lines) == 3 and lines[-1]["loss"] != pytest.approx(_lines(first)[-1]["loss"], rel=1e-4)
    for line, other in zip(lines, expected, strict=True):
        assert line["policy_version"] == other["policy_version"]
        assert line["response_length"] == other["response_length"]
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert {log.name for log in (second / "logs").iterdir()} >= {"rollout-0.log", "scorer.teacher-0.log"}
