"""Signals and `logratio stop` reach a run while it starts and while it waits; nothing of it is left, and it resumes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from actors.shared_memory import shared_folder
from tests.cli.test_commands import _recipe, _said, _simulated
from tests.cli.test_kill_and_resume import _lines, _wait_for
from tests.processes import alive, descendants


@pytest.mark.system
@pytest.mark.timeout(300)
def test_a_run_is_stopped_as_it_starts_and_as_it_waits(
    models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path
) -> None:
    file, directory = tmp_path / "recipe.yaml", tmp_path / "live"
    file.write_text(yaml.safe_dump(_recipe(models, prompts, tmp_path)))
    lock = directory / "lock"

    starting = _simulated(0.5, "run", str(file))
    _wait_for(lambda: lock.exists() and lock.stat().st_size > 0, starting)
    assert "stopping" in _said("stop", directory)  # no control actor yet, or just so
    output, _ = starting.communicate(timeout=60)
    assert starting.returncode == 3 and "go on with: logratio resume live" in output, output
    assert (directory / "recipe.yaml").exists()

    resumed = _simulated(0.5, "resume", str(directory))
    _wait_for(lambda: len(_lines(directory)) >= 1, resumed)
    session = descendants(resumed.pid)
    os.kill(resumed.pid, signal.SIGTERM)
    output, _ = resumed.communicate(timeout=60)
    assert resumed.returncode == 3, output
    _wait_for(lambda: not alive(session))
    assert json.loads((directory / "summary.json").read_text())["exit"] == 3
    assert list((directory / "checkpoints").iterdir()) and not Path(shared_folder("live", str(tmp_path))).exists()

    began, hurried = time.time(), _simulated(0.5, "resume", str(directory))
    _wait_for(lambda: json.loads((directory / "status.json").read_text())["time"] > began, hurried)
    session = descendants(hurried.pid)
    hurried.send_signal(signal.SIGINT)
    time.sleep(0.1)  # else the two are one
    hurried.send_signal(signal.SIGINT)
    output, _ = hurried.communicate(timeout=60)
    assert hurried.returncode == 3, output
    _wait_for(lambda: not alive(session))
    assert not (directory / "control.json").exists()
