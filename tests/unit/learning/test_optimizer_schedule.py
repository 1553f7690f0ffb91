"""The learning rate of every update: linear warm-up, then constant, linear or cosine towards 0."""

from __future__ import annotations

import pytest
import torch

from actors.learning.optimizer import build_optimizer, learning_rate
from configs.roles.learner import Learner, Optimizer


def rates(steps: int, **config: object) -> list[float]:
    optimizer = Optimizer(lr=2.0, **config)  # type: ignore[arg-type]
    return [learning_rate(optimizer, step, steps) for step in range(1, steps + 1)]


def test_without_warm_up_and_decay_the_rate_is_constant() -> None:
    assert rates(3) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_warm_up_is_linear_never_zero_and_ends_at_the_full_rate(decay: str) -> None:
    assert rates(8, warmup_steps=4, decay=decay)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_linear_decay_falls_evenly_and_reaches_zero_after_the_last_update() -> None:
    assert rates(4, decay="linear") == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_cosine_decay_is_half_way_at_half_time() -> None:
    assert rates(4, decay="cosine") == pytest.approx([2.0, 1.0 + 2**-0.5, 1.0, 1.0 - 2**-0.5])


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_decay_only_falls_and_stays_positive(decay: str) -> None:
    fallen = rates(50, warmup_steps=5, decay=decay)[5:]
    assert fallen == sorted(fallen, reverse=True) and fallen[-1] > 0


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_a_warm_up_longer_than_the_run_only_warms_up(decay: str) -> None:
    assert rates(2, warmup_steps=4, decay=decay) == pytest.approx([0.5, 1.0])


def test_adamw_in_one_pass_takes_the_steps_of_the_plain_one() -> None:
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    config = Learner.model_validate({"optimizer": settings})
    drawn = torch.randn(300, generator=torch.Generator().manual_seed(0))
    ours, plain = (torch.nn.Parameter(drawn.clone()) for _ in range(2))
    pairs = [(ours, build_optimizer(config, [ours])), (plain, torch.optim.AdamW([plain], **settings))]
    for step in range(20):
        gradient = torch.randn(300, generator=torch.Generator().manual_seed(step))
        for parameter, optimizer in pairs:
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
