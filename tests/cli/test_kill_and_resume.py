"""`kill -9` of the driver in mid-run on real engines and `logratio resume`: nothing survives or is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.shared_memory import shared_folder
from configs.load import dump_recipe
from tests.engines.shared import Engines
from tests.processes import agents_of_ray, alive, descendants

STEPS = 6


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [(3,), pytest.param((3, 5), marks=pytest.mark.acceptance)], ids=["once", "twice"])
def test_killed_driver_resumes_to_the_same_end(kills: Sequence[int], engines: Engines, tmp_path: Path) -> None:
    """`kills`: lines of metrics.jsonl after which the driver is killed."""
    changes: dict[str, Any] = {
        "run": {"steps": STEPS},
        "rollout": {"members": 1},
        "scorer": {"teacher": {"members": 1}},
        "learner": {"ranks": 1, "zero_stage": 0, "optimizer": {"name": "adamw", "lr": 1e-3}},
        "checkpoint": {"every": 2},
    }
    whole = engines.run(engines.recipe(**changes))  # the uninterrupted run

    recipe = engines.recipe(**changes | {"run": {"steps": STEPS, "name": "killed", "root": str(tmp_path)}})
    file, directory = tmp_path / "recipe.yaml", tmp_path / "killed"
    file.write_text(dump_recipe(recipe))
    command, recorded = ("run", str(file)), 0
    for lines in kills:
        recorded = killed_after(_logratio(*command), directory, max(lines, recorded + 1))
        assert recorded < STEPS, "killed in mid-run"
        command = ("resume", str(directory))
    asked = _logratio("status", str(directory))
    assert "does not answer" in asked.communicate(timeout=60)[0] and asked.returncode == 2

    resumed = _logratio("resume", str(directory))
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    assert "leaked" not in output, "no library has a last word"
    lines = _lines(directory)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    versions = [line["policy_version"] for line in lines]
    assert versions == sorted(set(versions)) and versions[-1] > recorded
    assert json.loads((directory / "summary.json").read_text())["exit"] == 0
    for line, expected in zip(lines, whole.lines, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert not Path(shared_folder("killed", str(tmp_path))).exists(), "weight files were swept"


def killed_after(driver: subprocess.Popen[str], directory: Path, lines: int) -> int:
    """Kill a driver once it has recorded so many lines, and wait for its processes' end; how many it recorded."""
    _wait_for(lambda: len(_lines(directory)) >= lines and len(descendants(driver.pid)) > 5, driver)
    session = descendants(driver.pid)
    session -= agents_of_ray(session)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _wait_for(lambda: not alive(session))
    return len(_lines(directory))


def _logratio(*arguments: str, module: Sequence[str] = ("orchestrator.cli",)) -> subprocess.Popen[str]:
    """The command in a process of its own; `module` is its entry point, with arguments that come first."""
    command = [sys.executable, "-m", *module, *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}  # a person's shell has none
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def _lines(directory: Path) -> list[dict[str, Any]]:
    metrics = directory / "metrics.jsonl"
    text = metrics.read_text() if metrics.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _wait_for(condition: Any, process: subprocess.Popen[str] | None = None, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended early with {process.returncode}: {process.stdout.read()}")  # type: ignore[union-attr]
        time.sleep(0.2)
