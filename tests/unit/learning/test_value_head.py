"""The value head beside the policy's optimizer: its own rate, its own norm, its own file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.learning.learner import Learner
from actors.learning.value_head import ValueHead
from actors.wire.jobs import LearnerSpec
from configs.objective import Objective
from configs.roles.learner import Learner as LearnerConfig
from configs.roles.learner import ValueHead as ValueHeadConfig

WIDTH = 8


def head(lr: float = 0.1, max_grad_norm: float = 1.0) -> ValueHead:
    return ValueHead(WIDTH, ValueHeadConfig(lr=lr, max_grad_norm=max_grad_norm), (0.9, 0.95))


def learn(found: ValueHead, size: float = 1.0, rate: float = 0.1) -> float:
    hidden = torch.full((4, WIDTH), size, dtype=torch.bfloat16, requires_grad=True)
    (found(hidden) - 1.0).square().sum().backward()
    assert hidden.grad is None, "its error does not move what the policy reads"
    return found.step(found.gradient(ranks=1), rate)


def test_its_values_and_gradients_are_float32_of_bf16_states() -> None:
    found = head()
    assert found(torch.ones(3, WIDTH, dtype=torch.bfloat16)).dtype == torch.float32
    assert found.weight.dtype == found.bias.dtype == torch.float32


def test_a_step_goes_by_its_own_rate_and_leaves_no_gradient() -> None:
    found = head()
    learn(found, rate=0.25)
    assert found.weight.tolist() == pytest.approx([0.25] * WIDTH, rel=1e-4), "AdamW's first step is the rate"
    assert found.weight.grad is None and not found.gradient(ranks=1).any()


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 1.0), (0.0, 24.0), (100.0, 24.0)])
def test_its_gradient_is_clipped_by_its_own_norm(limit: float, expected: float) -> None:
    """Of 4 states of ones with an error of -1 each: 8 in each of the 8 + 1 numbers, so 24 in all."""
    found = head(max_grad_norm=limit)
    assert learn(found) == pytest.approx(24.0)
    moment = found._optimizer.state[found.weight]["exp_avg"] / (1 - 0.9)
    assert -float(moment[0]) * 3.0 == pytest.approx(expected)


def test_it_goes_on_from_its_file_as_if_never_interrupted(tmp_path: Path) -> None:
    whole, first, second = head(), head(), head()
    for _ in range(2):
        learn(whole)
        learn(first)
    first.save(tmp_path)
    second.load(tmp_path)
    learn(whole, size=0.5)
    learn(second, size=0.5)
    assert torch.equal(whole.weight, second.weight) and torch.equal(whole.bias, second.bias)
    assert float(second._optimizer.state[second.weight]["step"]) == 3.0


def test_a_head_that_never_stepped_is_restored_as_such(tmp_path: Path) -> None:
    first, second = head(), head()
    first.save(tmp_path)
    learn(second)
    second.load(tmp_path)
    assert not second.weight.any() and not second._optimizer.state


def test_a_gradient_that_is_not_finite_is_let_go() -> None:
    found = head()
    found.step(torch.full((WIDTH + 1,), torch.nan), 0.1)
    assert not found.weight.any() and not found._optimizer.state


def test_a_checkpoint_without_its_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"has no value_head.safetensors: it is of an earlier version"):
        head().load(tmp_path)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0.25), (0.5, 0.125)])
def test_the_learner_steps_it_at_its_own_rate_in_the_policys_schedule(share: float, expected: float) -> None:
    """`share`: of its rate that the policy's schedule has reached."""
    config = LearnerConfig.model_validate({"optimizer": {"lr": 1e-3}, "value_head": {"lr": 0.25}})
    learner, found = Learner(0, 1), head()
    learner._spec = LearnerSpec(config, Objective(target="data"), "/none", 9, 1, 0, "float32")
    for applied in (False, True):
        (found(torch.ones(4, WIDTH)) - 1.0).square().sum().backward()
        learner._applied = applied
        learner._apply_values(found, share * 1e-3)
        assert found.weight.tolist() == pytest.approx([expected * applied] * WIDTH, rel=1e-4)
        assert found.weight.grad is None, "a gradient whose step the policy skipped is let go"
