"""Dials: scheduled numbers of an objective, as pure functions of the step, so that a resumed run repeats them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from configs.objective import Adaptive, Schedule
from configs.objective import Objective as ObjectiveConfig


@dataclass(frozen=True)
class Dials:
    """An objective's scheduled numbers at one step. `distillation` and `outcome` are 0 or 1 (a switch)."""

    reverse_weight: float = 1.0
    beta: float = 0.0
    distillation: float = 1.0
    outcome: float = 1.0


def dials_at(config: ObjectiveConfig, step: int, beta: float | None = None) -> Dials:
    """Dials of learner step `step` (the first is 1). `beta`: the adaptive coefficient now; None for the recipe's."""
    switched = config.outcome.combine == "switch"
    late = config.outcome.switch_step is not None and step >= config.outcome.switch_step
    if beta is None:
        beta = initial_beta(config)
    return Dials(
        reverse_weight=value_at(config.reverse_weight, step),
        beta=beta,
        distillation=float(not (switched and late)),
        outcome=float(not switched or late),
    )


def value_at(value: float | Schedule, step: int) -> float:
    """A fixed number, or a schedule's: `start` at step 1, `end` from step 1 + `steps` on."""
    if not isinstance(value, Schedule):
        return value
    share = min(1.0, max(0, step - 1) / value.steps)
    if value.shape == "cosine":
        share = 0.5 * (1.0 - math.cos(math.pi * share))
    return value.start + (value.end - value.start) * share


def initial_beta(config: ObjectiveConfig) -> float:
    """The reference's coefficient before the first step; 0 without a reference."""
    if config.reference is None:
        return 0.0
    beta = config.reference.beta
    return beta.initial if isinstance(beta, Adaptive) else beta


def adapted_beta(config: ObjectiveConfig, beta: float, kl: float, samples: int) -> float:
    """beta (1 + clip(kl / target - 1, -0.2, 0.2) samples / horizon): Ziegler et al. 2019 (arXiv 1909.08593).

    `kl` is the mean over responses of sum_t k1_t, nats a response. A fixed beta is returned unchanged.
    """
    if config.reference is None or not isinstance(config.reference.beta, Adaptive):
        return beta
    rule = config.reference.beta
    error = min(0.2, max(-0.2, kl / rule.target - 1.0))
    return beta * (1.0 + error * samples / rule.horizon)


def fractions_at(config: ObjectiveConfig, step: int) -> dict[str, float]:
    """Share of prompt groups whose prefixes come from each source at a step; they sum to 1."""
    if isinstance(config.prefix, str):
        return {config.prefix: 1.0}
    values = {source: max(0.0, value_at(value, step)) for source, value in config.prefix.items()}
    total = sum(values.values())
    return {source: value / total for source, value in values.items()}
