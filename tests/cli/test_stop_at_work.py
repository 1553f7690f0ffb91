"""Ctrl-C while real engines start, and SIGTERM in a real step: the run ends with 3, leaves no process, and resumes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from configs.load import dump_recipe
from tests.cli.test_kill_and_resume import _lines, _logratio, _wait_for
from tests.engines.shared import Engines
from tests.processes import agents_of_ray, alive, descendants, title

SECONDS = 40.0  # to end in, of which Ray takes most; an engine's start takes longer than this on a busy machine


@pytest.mark.acceptance
@pytest.mark.timeout(400)
def test_a_run_on_real_engines_is_stopped_as_it_starts_and_in_a_step(engines: Engines, tmp_path: Path) -> None:
    recipe = engines.recipe(run={"steps": 50, "name": "stopped", "root": str(tmp_path)})
    file, directory = tmp_path / "recipe.yaml", tmp_path / "stopped"
    file.write_text(dump_recipe(recipe))

    starting = _logratio("run", str(file))
    _wait_for(lambda: _works(starting, "ray::Rollout.start"), starting)
    _stopped_by(signal.SIGINT, starting)
    assert not _lines(directory)

    stepping = _logratio("resume", str(directory))
    _wait_for(lambda: _lines(directory) and _works(stepping, "ray::Learner.step"), stepping)
    _stopped_by(signal.SIGTERM, stepping)
    done = len(_lines(directory))
    assert 1 <= done < 50 and (directory / "checkpoints" / f"step_{done}").is_dir()


def _works(driver: subprocess.Popen[str], doing: str) -> bool:
    return any(title(pid).startswith(doing) for pid in descendants(driver.pid))


def _stopped_by(number: signal.Signals, driver: subprocess.Popen[str]) -> None:
    under = descendants(driver.pid)
    under -= agents_of_ray(under)
    assert len(under) > 5, "the run's processes should be visible"
    os.kill(driver.pid, number)
    output, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 3 and "Traceback" not in output, output
    _wait_for(lambda: not alive(under), seconds=SECONDS)
