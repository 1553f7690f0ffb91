"""The rules of a probe on pairs of real tiny models: the same, near, and far."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.objective import Objective
from objectives.readings import of_chunk
from objectives.tokens import Scores
from orchestrator.surface.measuring import advice
from orchestrator.surface.measuring.advice import findings, recommended
from orchestrator.surface.measuring.probed import Measured
from tests.tiny import build_model
from tests.unit.simulation import recipe
from tests.unit.surface.test_probe_rules import GOOD


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    folder = build_model(tmp_path_factory.mktemp("student"))
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def of_pair(student: Any, teacher: Any) -> Measured:
    """Overlap, mass and KL of two real models on random prefixes, as the learner computes them."""
    torch.manual_seed(4)
    ids = torch.randint(3, 259, (4, 24))
    logprobs, other = (model(ids).logits.flatten(0, 1)[:, :259].log_softmax(-1) for model in (student, teacher))
    top = other.topk(16)
    tail = torch.log1p(-top.values.exp().sum(-1))
    scores = Scores(top.values[:, 0], top.indices, top.values, tail)
    config = Objective(target="teacher", support="topk", topk=16)
    found = of_chunk(config, logprobs, SimpleNamespace(scores={"teacher": scores}), {"teacher": 1.0})  # type: ignore[arg-type]
    return replace(GOOD, **{n: float(v.mean()) for n, v in found.items() if n in {f.name for f in fields(Measured)}})


def moved(model: Any, by: float) -> Any:
    teacher = deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std() * by)
    return teacher


@pytest.mark.parametrize(("by", "expected"), [(0.0, advice.NOTHING), (0.15, advice.DISTIL), (30.0, advice.SFT_FIRST)])
def test_real_models_that_are_the_same_near_and_far(student: Any, by: float, expected: str, tmp_path: Path) -> None:
    assert recommended(findings(of_pair(student, moved(student, by)), recipe(tmp_path))) == expected
