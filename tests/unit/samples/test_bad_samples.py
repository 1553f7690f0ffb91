"""A sample with values that are not finite is skipped, counted, and reported with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.simulated import rollout
from actors.simulated.reward import SimulatedReward
from actors.wire.records import Request, Sample
from orchestrator.run import DONE
from tests.unit.simulation import STEPS, Simulation, assert_each_once, metrics, recipe

BAD = "00000005.001"
NAN = float("nan")


def unrewarded(patch: pytest.MonkeyPatch) -> None:
    reward = SimulatedReward.reward

    def bad(self: SimulatedReward, *arguments: Any) -> dict[str, float]:
        answer = reward(self, *arguments)
        return replace(answer, values={uid: NAN if uid == BAD else value for uid, value in answer.values.items()})

    patch.setattr(SimulatedReward, "reward", bad)


def unsampled(patch: pytest.MonkeyPatch) -> None:
    row = rollout._row

    def bad(request: Request, *arguments: Any) -> Sample:
        sample = row(request, *arguments)
        return replace(sample, rollout_logprobs=[NAN] * len(sample.response_ids)) if sample.uid == BAD else sample

    patch.setattr(rollout, "_row", bad)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(unrewarded, "its reward is nan"), (unsampled, "the sampler's log-probs are not finite")],
)
def test_a_sample_that_is_not_finite_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None], reason: str
) -> None:
    spoil(monkeypatch)
    outcome = {"weight": 1.0, "baseline": "rloo"}
    simulation = Simulation(recipe(tmp_path, objective={"target": "teacher", "outcome": outcome}))
    assert simulation.go_in_own_time() == DONE
    assert json.loads((simulation.directory / "summary.json").read_text())["skipped"] == {BAD: reason}
    assert sum(line["samples_dropped"] for line in metrics(tmp_path)) == 1
    assert_each_once(tmp_path, STEPS, [BAD])
