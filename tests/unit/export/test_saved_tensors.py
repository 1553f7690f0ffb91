"""How far a checkpoint moved is how far its model did, read without a learner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.metrics import MOVEMENT_METRICS
from orchestrator.surface.measuring.movement import measured
from tests.tiny import build_model


def test_a_checkpoint_and_its_model_moved_alike(tmp_path: Path) -> None:
    start = build_model(tmp_path / "start")
    model = AutoModelForCausalLM.from_pretrained(start)
    torch.manual_seed(0)
    with torch.no_grad():
        down, across = torch.randn(64, 1), torch.randn(1, 128)
        model.model.layers[0].mlp.down_proj.weight.add_(down @ across)
    model.save_pretrained(tmp_path / "now")
    saved = tmp_path / "step_1" / "deepspeed"
    saved.mkdir(parents=True)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"module": tensors}, saved / "mp_rank_00_model_states.pt")
    one, other = measured(str(start), tmp_path / "now"), measured(str(start), start, saved.parent)
    assert one["tensors"]["model.layers.0.mlp.down_proj.weight"]["rank"] == pytest.approx(1.0, rel=1e-3)
    assert one["effective_rank"] == pytest.approx(1.0, rel=1e-3), "one matrix moved"
    for name in MOVEMENT_METRICS:
        assert other[name] == pytest.approx(one[name]), name
    (saved / "mp_rank_00_model_states.pt").unlink()
    assert "unknown" in measured(str(start), start, saved.parent)
