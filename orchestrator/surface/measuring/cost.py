"""What a thousand steps will cost, from what a probe took. Pure.

An estimate: a step's samples take as long for each as the probe's did, an update three forward passes (the backward
pass is two: Kaplan and others 2020, arXiv 2001.08361, 2.1), four where activations are computed again (Chen and others
2016, arXiv 1604.06174). Evaluations, checkpoints and rewards are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from configs.schema import Recipe

STEPS = 1000
PASSES, PASSES_RECOMPUTED = 3, 4  # forward passes that an update takes as long as


@dataclass(frozen=True)
class Took:
    """A probe of `samples` whole responses of `tokens` together: wall seconds in which some member of the role was
    busy; `learn` of the forward pass alone; `sync` of the first publish and pull."""

    samples: int
    tokens: int
    rollout: float
    score: float
    learn: float
    sync: float


@dataclass(frozen=True)
class Cost:
    """Seconds of a step by role and in all, hours of STEPS steps, and GPU-hours: `gpus` are what the recipe reserves
    from the first step to the last, busy or not; 0 on CPUs."""

    rollout: float
    score: float
    learn: float
    sync: float
    step_seconds: float
    hours: float
    gpus: float
    gpu_hours: float
    tokens_per_second: float

    def to_json(self) -> Mapping[str, float]:
        return asdict(self)


def cost(recipe: Recipe, took: Took) -> Cost:
    """Scoring overlaps with sampling; the learner does with both where `max_staleness` is above 0; nothing does where
    they take turns (`colocate`)."""
    samples = recipe.batch.prompts_per_step * recipe.batch.samples_per_prompt
    scale = samples / took.samples
    passes = PASSES_RECOMPUTED if recipe.learner.gradient_checkpointing else PASSES
    rollout, score = took.rollout * scale, took.score * scale
    learn = took.learn * scale * passes * recipe.batch.updates
    seconds = took.sync + _overlapped(recipe, rollout, score, learn)
    gpus = sum(size.gpus for size in recipe.roles.values())
    hours = seconds * STEPS / 3600.0
    rate = took.tokens * scale / seconds if seconds else 0.0
    return Cost(rollout, score, learn, took.sync, seconds, hours, gpus, hours * gpus, rate)


def _overlapped(recipe: Recipe, rollout: float, score: float, learn: float) -> float:
    if recipe.colocate:
        return rollout + score + learn
    if recipe.max_staleness:
        return max(rollout, score, learn)
    return max(rollout, score) + learn
