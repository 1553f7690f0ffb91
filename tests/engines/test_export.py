"""The student of a checkpoint, read without a learner, is the one that the learner itself exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.metrics import MOVEMENT_METRICS
from orchestrator.surface.export.export import export
from orchestrator.surface.measuring.movement import measured
from tests.engines.shared import Engines

STEP_2 = "checkpoints/step_2"


@pytest.mark.parametrize(
    "learner", [{"ranks": 1, "zero_stage": 0}, {"ranks": 2, "zero_stage": 2}], ids=["plain", "zero"]
)
def test_the_model_of_a_checkpoint_is_the_learners(engines: Engines, tmp_path: Path, learner: dict[str, Any]) -> None:
    done = engines.run(engines.recipe(run={"steps": 2}, learner=learner, checkpoint={"every": 1, "keep": 2}))
    outs = [tmp_path / f"step{step}" for step in (1, 2)]
    for step, out in enumerate(outs, 1):
        export(done.directory, out, step)
    first, last = (load_file(out / "model.safetensors") for out in outs)
    whole = load_file(done.directory / "model" / "model.safetensors")
    assert last.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(last[name], tensor, rtol=0.0, atol=0.0, msg=name)
    assert any(not torch.equal(first[name], last[name]) for name in whole), "step 2 moved the weights"
    assert {file.name for file in outs[1].iterdir()} >= {file.name for file in (done.directory / "model").iterdir()}
    start = done.recipe.path_of("student")
    moved, saved = measured(start, done.directory / "model"), measured(start, Path(start), done.directory / STEP_2)
    assert moved["weights_changed"] > 0.1 and moved["effective_rank"] > 1.0
    for name in MOVEMENT_METRICS:
        assert saved[name] == pytest.approx(moved[name], rel=0.2), name  # float32 against the dtype of the learner
