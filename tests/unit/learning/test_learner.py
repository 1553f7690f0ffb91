"""What a rank does with the weights that all ranks gather."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.learning.learner import Learner
from actors.models import weights
from actors.models.stored import Group, Stored
from actors.wire.jobs import LearnerSpec
from tests.unit.simulation import recipe


def rank_of_two(rank: int, root: Path) -> Learner:
    """A rank that holds a layer of 4 x 3 weights and 3 biases, and is alone for want of ZeRO-3."""
    settings, learner = recipe(root), Learner(rank, 2)
    learner._spec = LearnerSpec(
        settings.learner, settings.objective, "/none", 9, 1, 0, "float32", averages={"ema": 0.5}
    )
    learner._stored = Stored((Group({"weight": (3, 4)}, {"w": (3, 4)}), Group({"bias": (3,)}, {"b": (3,)})))
    learner._student = SimpleNamespace(model=torch.nn.Linear(4, 3))  # pyright: ignore[reportAttributeAccessIssue]
    return learner


@pytest.mark.parametrize(("rank", "tensors"), [(0, 2), (1, 0)])
def test_only_the_first_rank_converts_hashes_and_keeps_what_is_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, tensors: int
) -> None:
    converted: list[tuple[int, ...]] = []
    to_bytes = weights.to_bytes

    def counted(tensor: torch.Tensor) -> Any:
        converted.append(tuple(tensor.shape))
        return to_bytes(tensor)

    monkeypatch.setattr(weights, "to_bytes", counted)
    learner = rank_of_two(rank, tmp_path)
    learner._averages = {"ema": learner._copy()}
    learner._average()
    for model in (None, "ema"):
        assert len(list(learner.publish(model))) == min(tensors, 1) * 2, "a bucket and its header"
    assert converted == [(3, 4), (3,)] * tensors
    assert len(learner._averages["ema"]) == tensors
