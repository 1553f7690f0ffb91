"""All that a run writes has the modes of the umask, also files that a library restricts to their owner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from actors.simulated.learner import SimulatedLearner
from orchestrator.run import DONE
from tests.unit.simulation import Simulation, recipe

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_file_of_a_run_has_the_modes_of_the_umask(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors, which writes model and averages, ignores the umask."""
    save = SimulatedLearner.save

    def export(self: SimulatedLearner, directory: str) -> None:
        (Path(directory) / "inner").mkdir(parents=True)
        save_file({"weight": np.zeros(3)}, Path(directory) / "inner" / "model.safetensors")

    def saved(self: SimulatedLearner, directory: str) -> None:
        save(self, directory)
        save_file({"weight": np.zeros(3)}, Path(directory) / "average_ema.safetensors")

    monkeypatch.setattr(SimulatedLearner, "export", export)
    monkeypatch.setattr(SimulatedLearner, "save", saved)
    assert Simulation(recipe(tmp_path)).go() == DONE
    found = list((tmp_path / "sim").rglob("*"))
    assert {"model.safetensors", "average_ema.safetensors", "summary.json", "metrics.jsonl"} <= {f.name for f in found}
    for path in found:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_members_log_is_its_owners_alone(tmp_path: Path) -> None:
    """Whatever the umask: it may quote prompts and responses."""
    log = tmp_path / "logs" / "reward-0.log"
    program = (
        f"import os; os.umask(0); from actors.member import Member; Member().attach_log({str(log)!r}); print('hi')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
    assert log.read_text() == "hi\n" and log.stat().st_mode & 0o777 == 0o600
