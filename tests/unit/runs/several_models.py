"""Runs on simulated members with prompts for several models, and with a length curriculum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.learning.share_rows import samples_of
from actors.simulated.learner import SimulatedLearner
from actors.wire.jobs import Share
from configs.schema import Recipe
from orchestrator.run import Run
from orchestrator.samples.prompts import Prompt
from tests.unit.simulation import (
    MEMBER,
    Simulation,
    recipe,
)

MODELS = ("student", "teacher", "other")


def prompt(name: str, index: int) -> Prompt:
    return Prompt(
        row={"prompt": name, "topic": "ab"[index % 2]},
        ids={model: [*[7] * k, 100 + index] for k, model in enumerate(MODELS)},
        response_ids=[60 + index, 61 + index, 1],
    )


PROMPTS = [prompt(f"p{i}", i) for i in range(17)]
HELDOUT = [prompt(f"h{i}", 400 + i) for i in range(3)]
OTHER = {"models": {"other": {"path": "/none"}}, "scorer": {"other": MEMBER}}
OnStep = Callable[[Run, Mapping[str, Any]], None]


def simulation(settings: Recipe, on_step: OnStep = lambda run, line: None) -> Simulation:
    return Simulation(settings, on_step, train=PROMPTS, heldout=HELDOUT)


CAPS = [4, 8, 16]


def ladder(root: Path, on_fail: str | None = None, staleness: int = 0, **changes: Any) -> Recipe:
    length: dict[str, Any] = {"caps": CAPS, "steps_per_stage": 2}
    if on_fail:
        length["gate"] = {"eval_length": 8, "minimum": 0.5, "on_fail": on_fail}
    objective = {"length": length}
    return recipe(root, objective=objective, data={"heldout": "/none"}, max_staleness=staleness, **changes)


class Entropies:
    """Held-out entropies by step; 1 after any other step. An observer of a run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, by_step: Mapping[int, float]) -> None:
        self.step = 0
        self.then: OnStep = lambda run, line: None
        self.judged: list[list[tuple[str, list[int]]]] = []  # uid and response of each that was measured
        evaluate = SimulatedLearner.evaluate

        def measured(learner: SimulatedLearner, share: Share) -> dict[str, float | None]:
            samples, found = samples_of(share, learner._payloads).values(), evaluate(learner, share)
            if share.step or share.record:  # a training step, or an evaluation of the run's
                return found
            self.judged.append(sorted((s.uid, s.response_ids) for s in samples))
            return found | {"entropy": by_step.get(self.step, 1.0)}

        monkeypatch.setattr(SimulatedLearner, "evaluate", measured)

    def __call__(self, run: Run, line: Mapping[str, Any]) -> None:
        self.step = line["step"]
        self.then(run, line)
