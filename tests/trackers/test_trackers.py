"""W&B, MLflow and Trackio by their own libraries, offline: a run that is stopped and resumed is one run to each."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".trackers/bin/python"  # `make test-trackers` installs it
SECRET = "0123456789abcdef" * 2 + "01234567"  # in the form of a W&B key

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment of the trackers: make test-trackers"),
    pytest.mark.timeout(900),
]


class Library:
    """A tracker's library in processes of its own, with all that it keeps below `folder`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.run = folder / "mine"
        self.run.mkdir()
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "WANDB", "MLFLOW"))},
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "WANDB_MODE": "offline",
            "WANDB_API_KEY": SECRET,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "TRACKIO_DIR": str(folder / "trackio"),
        }

    def live(self, first: int, last: int, code: int) -> None:
        self._call(str(first), str(last), str(code))

    def has(self) -> dict[str, Any]:
        return json.loads(self._call().splitlines()[-1])

    def _call(self, *arguments: str) -> str:
        command = [str(PYTHON), "-m", "tests.trackers.life", self.name, str(self.run), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.mark.parametrize(("name", "ended"), [("wandb", 0), ("mlflow", "FINISHED"), ("trackio", None)])
def test_lives_of_a_run_are_one_run_with_every_number(name: str, ended: Any, tmp_path: Path) -> None:
    """The second life begins at a step that the first one had made, as after a learner that was rebuilt."""
    library = Library(name, tmp_path)
    library.live(1, 3, 3)
    library.live(3, 4, 0)
    found = library.has()
    assert found["runs"] == 1 and found["ended"] == ended
    assert found["points"].keys() == {"step/loss", "held_out/reverse_kl"}, (
        "what is not known, or no number, is no point"
    )
    losses = [(step, pytest.approx(1.0 / step, rel=1e-6)) for step in (1, 2, 3, 3, 4)]
    assert sorted(map(tuple, found["points"]["step/loss"])) == losses
    assert sorted(map(tuple, found["points"]["held_out/reverse_kl"])) == [(3, 0.25), (4, 0.25)]
    assert found["recipe"]["objective"]["target"] == "teacher"
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
