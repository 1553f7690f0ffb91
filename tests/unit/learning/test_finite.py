"""What a rank does with a loss, a gradient or weights that are not finite; DeepSpeed's part is tested on real ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from actors.learning.learner import Learner
from actors.learning.ranks.finite import all_finite, spoiling
from actors.wire.jobs import LearnerSpec
from actors.wire.records import BrokenWeights
from tests.unit.simulation import recipe


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Engine:
    """As much of DeepSpeed's as an update takes. Under ZeRO it lets a gradient go whose norm is not finite."""

    def __init__(self, module: torch.nn.Module, zero: bool) -> None:
        self.optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        self._module, self._zero, self._applied = module, zero, True
        self._norm = 0.0

    def step(self) -> None:
        gradients = [p.grad.norm() for p in self._module.parameters() if p.grad is not None]
        self._norm = float(torch.stack(gradients).norm())
        self._applied = not self._zero or math.isfinite(self._norm)
        if self._applied:
            self.optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def was_step_applied(self) -> bool:
        return self._applied

    def get_global_grad_norm(self) -> float:
        return self._norm


def rank(root: Path, zero_stage: int, lr: float, gradients: list[float]) -> tuple[Learner, torch.nn.Module]:
    """A rank that makes two updates a batch, of these gradients."""
    config = recipe(root).learner.model_copy(update={"dtype": "float32", "zero_stage": zero_stage})
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": lr})})
    learner, module = Learner(0, 1), torch.nn.Linear(3, 2)
    module.value_head = None  # pyright: ignore[reportAttributeAccessIssue]
    learner._spec = LearnerSpec(config, recipe(root).objective, "/none", 9, 9, 0, "float32", updates=2)
    learner._student = module  # pyright: ignore[reportAttributeAccessIssue]
    learner._engine = Engine(module, bool(zero_stage))
    left = iter(gradients)

    def accumulate(batch: Any) -> dict[str, Any]:
        gradient = next(left)
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        return {"loss": gradient}

    learner._accumulate = accumulate
    learner._batch = lambda share: None  # type: ignore[method-assign, assignment, return-value]
    return learner, module


@pytest.mark.parametrize("zero_stage", [0, 2])
@pytest.mark.parametrize(
    ("gradients", "skipped", "moved"),
    [([1.0, 1.0], 0, 2.0), ([math.nan], 2, 0.0), ([math.inf], 2, 0.0), ([1.0, math.nan], 1, 1.0)],
)
def test_updates_are_skipped_from_the_first_that_is_not_finite_on(
    tmp_path: Path, alone: None, zero_stage: int, gradients: list[float], skipped: int, moved: float
) -> None:
    learner, module = rank(tmp_path, zero_stage, 0.5, gradients)
    before = [p.detach().clone() for p in module.parameters()]
    metrics = learner.step(SimpleNamespace(step=1))  # pyright: ignore[reportArgumentType]
    assert metrics["updates_skipped"] == skipped and math.isfinite(metrics["grad_norm"]) == (not skipped)
    for old, new in zip(before, module.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - 0.5 * moved)
        assert new.grad is None


def test_weights_that_a_finite_gradient_broke_are_said(tmp_path: Path, alone: None) -> None:
    learner, _ = rank(tmp_path, 0, 1e38, [1e4])
    with pytest.raises(BrokenWeights, match="step 7"):
        learner.step(SimpleNamespace(step=7))  # pyright: ignore[reportArgumentType]


def test_a_rank_looks_at_its_own_part_and_not_at_what_pads_it(alone: None) -> None:
    parameter: Any = torch.nn.Parameter(torch.zeros(0))
    parameter.ds_tensor, parameter.ds_numel = torch.tensor([1.0, 2.0, math.nan]), 2
    assert all_finite([parameter])
    parameter.ds_numel = 3
    assert not all_finite([parameter]) and all_finite([torch.ones(2, dtype=torch.bfloat16)])


@pytest.mark.parametrize(("loss", "finite"), [(2.0, True), (math.inf, False), (math.nan, False)])
def test_no_gradient_of_a_loss_that_is_not_finite_is(loss: float, finite: bool) -> None:
    """Also where the objective's own would be: a constant added to it has none."""
    weight = torch.ones(3, requires_grad=True)
    spoiling(weight.sum() + (loss - 3.0)).backward()
    assert weight.grad is not None and bool(torch.isfinite(weight.grad).all()) == finite
    assert not finite or weight.grad.tolist() == [1.0, 1.0, 1.0]
