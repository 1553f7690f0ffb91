"""What evaluations ask of rollout members at the same time: held-out prompts all at once, and training goes on beside
them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.rollout import SimulatedRollout
from actors.wire.records import Request, Sample
from orchestrator.between_steps.measuring import Measurements
from orchestrator.between_steps.together import together
from orchestrator.pools.transport import LocalTransport
from orchestrator.run import DONE
from tests.unit.runs.test_sets import GENERAL, MATHS, TRAIN, prompt
from tests.unit.simulation import Simulation, metrics, recipe
from tests.unit.weights.one_gpu import Gpu, Transport, gpu

__all__ = ["gpu"]

KINDS = {"9000": "heldout", "9010": "maths", "9020": "general"}
SETS = {
    "maths": {"prompts": "/m", "samples_per_prompt": 4},
    "general": {"prompts": "/g", "samples_per_prompt": 3, "teachers": False},
}
Seen = list[tuple[str, Counter[str]]]
SLOW = Speeds(rollout=0.01)


@pytest.fixture
def in_flight(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The kind of each response, in the order in which they begin, and those that are being written then."""
    seen, now = Seen(), Counter[str]()
    write = SimulatedRollout.write

    async def noted(self: SimulatedRollout, request: Request, *rest: Any) -> AsyncIterator[Sample]:
        kind = KINDS.get(request.uid[:4], "train")
        now[kind] += 1
        seen.append((kind, now.copy()))
        try:
            async for piece in write(self, request, *rest):
                yield piece
        finally:
            now[kind] -= 1

    after_step = Measurements.after_step

    async def measured(self: Measurements, *rest: Any) -> None:
        now["after a step"] += 1
        await after_step(self, *rest)
        now["after a step"] -= 1

    monkeypatch.setattr(Measurements, "after_step", measured)
    monkeypatch.setattr(SimulatedRollout, "write", noted)
    return seen


def go(root: Path, transport: LocalTransport | None = None, **changes: Any) -> None:
    made = recipe(root, run={"steps": 3}, evaluate={"every": 1, "sets": SETS}, **changes)
    sets = {"maths": MATHS, "general": GENERAL}
    heldout, transport = [prompt(500 + i) for i in range(3)], transport or LocalTransport()
    run = Simulation(made, train=TRAIN, heldout=heldout, sets=sets, speeds=SLOW, transport=transport)
    assert run.go() == DONE


def peak(seen: Seen, *kinds: str) -> int:
    return max(sum(now[kind] for kind in kinds) for _, now in seen)


def test_held_out_prompts_of_all_kinds_are_sampled_at_once(tmp_path: Path, in_flight: Seen) -> None:
    """20 of one set, 12 of another and 3 of data.heldout: a loop over them would be slower by the longest response of
    each but the last."""
    go(tmp_path)
    assert [peak(in_flight, kind) for kind in KINDS.values()] == [3, 20, 12]
    assert peak(in_flight, "maths", "general") == 32
    assert peak(in_flight, "heldout", "maths", "general") == 35


def test_where_members_take_turns_with_the_learner_no_two_are_sampled_at_once(
    tmp_path: Path, gpu: Gpu, in_flight: Seen
) -> None:
    go(tmp_path, Transport(), colocate=True, learner={"zero_stage": 2})
    assert [peak(in_flight, kind) for kind in KINDS.values()] == [3, 20, 12]
    assert peak(in_flight, *KINDS.values()) == 20 and not gpu.faults


@pytest.mark.parametrize("staleness", [0, 1])
def test_training_prompts_are_leased_while_an_evaluation_runs(tmp_path: Path, in_flight: Seen, staleness: int) -> None:
    """As slots become free: there are fewer than prompts that may be leased."""
    go(tmp_path, max_staleness=staleness, rollout={"members": 2, "max_concurrent": 2})
    assert [now for kind, now in in_flight if kind == "train" and now["after a step"]]
    assert staleness == max(line["staleness_max"] for line in metrics(tmp_path) if "step" in line)


def test_the_first_failure_of_several_ends_the_others() -> None:
    ended = list[str]()

    async def waits() -> None:
        try:
            await asyncio.sleep(5.0)
        finally:
            ended.append("cancelled")

    async def fails() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        asyncio.run(together([waits, fails]))
    assert ended == ["cancelled"]
