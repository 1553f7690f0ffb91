"""The tail of a top-k support from vLLM's float32 log-probs: what they cannot tell is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.scoring.prompt_logprobs import TAIL_RESOLUTION
from actors.scoring.prompt_logprobs import tails as tails_of
from actors.simulated.scorer import SimulatedScorer
from actors.wire.records import Score, pack_scores
from orchestrator.run import DONE
from tests.unit.simulation import Simulation, metrics, recipe


def test_a_tail_within_resolution_is_one_less_the_sum() -> None:
    mass = np.array([[0.5, 0.25], [0.9, 0.0999], [0.3, 0.1]])
    tails, floored = tails_of(np.log(mass).astype(np.float32))
    assert tails == pytest.approx(np.log(1.0 - mass.sum(-1)), abs=2e-3) and floored == 0


@pytest.mark.parametrize("outside", [0.0, 1e-12, 1e-9, 3e-8, 9e-7])
def test_a_smaller_tail_is_floored_and_counted(outside: float) -> None:
    mass = np.array([[0.75 - outside, 0.25], [0.5, 0.25]])
    tails, floored = tails_of(np.log(mass).astype(np.float32))
    assert tails == pytest.approx(np.log([TAIL_RESOLUTION, 0.25])) and floored == 1


def test_the_header_counts_floored_tails() -> None:
    scores = [Score(uid, np.zeros(2, np.float32), tails_floored=n) for uid, n in (("a", 2), ("b", 0), ("c", 1))]
    assert pack_scores(scores, {})[1].tails_floored == 3


def test_the_metrics_of_a_run_count_what_its_scorers_floored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, answers = SimulatedScorer.score, list[int]()

    async def flooring(scorer: SimulatedScorer, *arguments: Any) -> Any:
        payload, header = await score(scorer, *arguments)
        answers.append(2)
        return payload, header._replace(tails_floored=2)

    monkeypatch.setattr(SimulatedScorer, "score", flooring)
    assert Simulation(recipe(tmp_path), heldout=()).go() == DONE
    counted = [line["tails_floored"] for line in metrics(tmp_path)]
    assert all(counted) and sum(counted) == sum(answers)
