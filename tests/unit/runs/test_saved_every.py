"""The default interval of checkpoints, and that a checkpoint holds the state of its own step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator import checkpoint
from orchestrator.run import DONE, Run
from orchestrator.weights.learner_group import LearnerDied
from tests.unit.simulation import STEPS, Simulation, metrics, recipe


@pytest.mark.parametrize(
    ("steps", "every"), [(1, 1), (5, 1), (6, 2), (8, 2), (100, 20), (250, 50), (251, 50), (100_000, 50)]
)
def test_a_run_is_saved_five_times_or_more(tmp_path: Path, steps: int, every: int) -> None:
    unsaid = recipe(tmp_path, run={"steps": steps}, checkpoint={"every": None})
    assert unsaid.saved_every == every
    assert recipe(tmp_path, run={"steps": steps}, checkpoint={"every": 0}).saved_every == 0
    assert recipe(tmp_path, run={"steps": steps}, checkpoint={"every": 7}).saved_every == 7


def test_by_default_a_dead_learner_does_not_return_to_the_start(tmp_path: Path) -> None:
    died: list[int] = []
    seen: list[int] = []

    def kill_once(run: Run, line: Mapping[str, Any]) -> None:
        seen.append(line["step"])
        if line["step"] == 5 and not died:
            died.append(5)
            run.learner.died.set()
            run.learner.death = LearnerDied("a rank is gone")

    assert Simulation(recipe(tmp_path, checkpoint={"every": None}), kill_once).go() == DONE
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, STEPS + 1))
    assert seen[seen.index(5) + 1] == 5, "gone on with from step 4"


def test_a_state_that_is_being_written_does_not_change_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a checkpoint is written, an evaluation ends and a sample is skipped."""
    seal = checkpoint.seal

    def late(run: Path, folder: Path, state: Mapping[str, Any], *rest: Any) -> Path:
        simulation.run.progress.skipped["00000000.000"] = "x"
        simulation.run.progress.evaluations["steps"].append({"step": 99})
        return seal(run, folder, state, *rest)

    monkeypatch.setattr(checkpoint, "seal", late)
    simulation = Simulation(recipe(tmp_path, checkpoint={"every": 0}))
    assert simulation.go() == DONE
    saved = json.loads((tmp_path / "sim" / "checkpoints" / f"step_{STEPS}" / checkpoint.STATE).read_text())
    assert not saved["skipped"] and not saved["evaluation"]["steps"]
