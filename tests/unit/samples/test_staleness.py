"""The staleness bound over whole runs, with slow rollouts and with a slow learner: never passed, and reached; and what
it does to the lengths that are trained.

Response lengths have a long tail: most are short, a few go on across several updates. Runs are in a time of their own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from actors.simulated import rollout
from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from actors.wire.jobs import Share
from actors.wire.records import SampleHeader
from orchestrator.between_steps.bookkeeping import described
from orchestrator.run import DONE
from orchestrator.samples.buffer import Batch, Scored
from orchestrator.samples.leases import Ticket
from tests.unit.own_time import OwnTime
from tests.unit.simulation import Simulation, metrics, recipe, trained

DENSE: Mapping[str, Any] = {"target": "teacher"}
OUTCOME: Mapping[str, Any] = {"target": "none", "outcome": {"weight": 1.0, "baseline": "rloo"}}
GROUPS, EACH, CAP = 8, 2, 96
SEED = 5  # the run's
TOKEN_SECONDS = 1.0  # of a rollout: a mean response takes 11 s, the longest 96 s
STEP_SECONDS = {"slow rollouts": 1.0, "a slow learner": 400.0}


def long_tailed(seed: int) -> int:
    """A Pareto distribution from 4 tokens on, cut at the cap."""
    return min(CAP, int(4 * random.Random(seed).paretovariate(1.3)))


@pytest.fixture
def step_seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how long a learner step takes."""
    seconds, step = [1.0], SimulatedLearner.step

    async def step_slowly(self: SimulatedLearner, share: Share) -> Any:
        await asyncio.sleep(seconds[-1])
        return step(self, share)

    monkeypatch.setattr(SimulatedLearner, "step", step_slowly)
    monkeypatch.setattr(rollout, "_length", lambda request, sampling: long_tailed(request.seed))
    return seconds.append


def run(root: Path, steps: int, objective: Mapping[str, Any], bound: int, on_stale: str | None = None) -> float:
    """A whole run; the seconds that it took."""
    settings = recipe(
        root,
        run={"steps": steps, "seed": SEED},
        batch={"prompts_per_step": GROUPS, "samples_per_prompt": EACH, "tokens_per_microbatch": 512},
        sampling={"max_response_tokens": CAP},
        objective=objective,
        rollout={"members": 3, "max_concurrent": 16},
        max_staleness=bound,
        checkpoint={"every": 0},
        **({"on_stale": on_stale} if on_stale else {}),
    )
    with asyncio.Runner(loop_factory=OwnTime) as runner:
        assert runner.run(Simulation(settings, speeds=Speeds(rollout=TOKEN_SECONDS)).run.execute()) == DONE
        return runner.get_loop().time()


def ages(root: Path) -> dict[int, list[int]]:
    """Ages of the loss tokens that each step trained, in versions, by step."""
    began = {f"step_{line['step']:06d}": line["policy_version"] - 1 for line in metrics(root)}
    found: dict[int, list[int]] = {}
    for row in trained(root):
        versions = [v for start, end in row["loss_spans"] for v in row["versions"][start:end]]
        found.setdefault(int(row["step"][5:]), []).extend(began[row["step"]] - v for v in versions)
    return found


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("objective", [DENSE, OUTCOME], ids=["mask_tokens", "wait"])
@pytest.mark.parametrize("slow", STEP_SECONDS)
def test_no_trained_token_is_older_than_the_bound_and_some_are_as_old(
    tmp_path: Path, step_seconds: Callable[[float], None], slow: str, objective: Mapping[str, Any], bound: int
) -> None:
    steps = 15
    step_seconds(STEP_SECONDS[slow])
    seconds = run(tmp_path, steps, objective, bound)
    learning = steps * STEP_SECONDS[slow] / seconds
    assert learning > 0.8 if slow == "a slow learner" else learning < 0.1, "who is slow holds the run up"
    by_step = ages(tmp_path)
    assert sorted(by_step) == list(range(1, steps + 1))
    assert min(min(found) for found in by_step.values()) == 0
    assert max(max(found) for found in by_step.values()) == bound
    if objective is OUTCOME:
        assert not any(line["tokens_masked"] for line in metrics(tmp_path)), "who waits loses no token"
    reported = {line["step"]: line["staleness_max"] for line in metrics(tmp_path)}
    assert reported == {step: max(found) for step, found in by_step.items()}


def lengths(root: Path, steps: int) -> tuple[list[int], list[int]]:
    """(what was sampled when each place of the data order was first asked for, what was trained in the end)"""
    tickets = [Ticket(index, sample) for index in range(steps * GROUPS) for sample in range(EACH)]
    trained_lengths = [len(row["response_ids"]) for row in trained(root)]
    assert len(trained_lengths) == len(tickets)
    return [long_tailed(ticket.seed(SEED)) for ticket in tickets], trained_lengths


@pytest.mark.parametrize("bound", [1, 2])
@pytest.mark.parametrize("objective", [DENSE, OUTCOME], ids=["mask_tokens", "wait"])
def test_by_default_what_is_trained_is_as_long_as_what_is_sampled(
    tmp_path: Path, step_seconds: Callable[[float], None], objective: Mapping[str, Any], bound: int
) -> None:
    run(tmp_path, 40, objective, bound)
    sampled, learned = lengths(tmp_path, 40)
    assert abs(fmean(learned) - fmean(sampled)) < noise(sampled)
    assert max(learned) == CAP


@pytest.mark.parametrize("bound", [1, 2])
def test_dropping_old_groups_trains_shorter_responses(
    tmp_path: Path, step_seconds: Callable[[float], None], bound: int
) -> None:
    run(tmp_path, 40, DENSE, bound, "drop")
    sampled, learned = lengths(tmp_path, 40)
    assert fmean(learned) < fmean(sampled) - 4 * noise(sampled)


def noise(sample: Sequence[int]) -> float:
    """Standard error of the mean."""
    return stdev(sample) / len(sample) ** 0.5


def test_responses_of_other_sources_have_no_age() -> None:
    versions = ((0, 3), (4, 5))
    header = SampleHeader("00000000.000", "00000000", 0, 1, 8, 8, "stop", versions)
    drawn, foreign = Scored(header, None), Scored(header, None, source="teacher")
    old = described(Batch((drawn, foreign), {}), 5)
    assert (old["staleness_mean"], old["staleness_max"], old["tokens_trained"]) == ((3 * 5 + 5 * 1) / 8, 5, 16)
    none = described(Batch((foreign,), {}), 5)
    assert (none["staleness_mean"], none["staleness_max"], none["tokens_trained"]) == (None, None, 8)
