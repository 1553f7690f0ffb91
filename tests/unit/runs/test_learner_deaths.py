"""A learner that dies is built anew from the newest checkpoint, as often as there is progress between its deaths."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.learner import SimulatedLearner
from actors.simulated.rollout import SimulatedRollout
from actors.wire.jobs import Share
from orchestrator.pools.startup import RoleFailed
from orchestrator.pools.transport import GangSpec, LocalTransport, MemberDied
from orchestrator.run import DONE, Run
from orchestrator.samples.buffer import Scored
from orchestrator.weights.learner_group import LearnerGroup
from tests.unit.runs.deaths import assert_sampled_with_newer, assert_whole
from tests.unit.simulation import (
    STEPS,
    Simulation,
    assert_each_once,
    recipe,
)


def kill_the_learner(run: Run) -> None:
    pool = run.pools.learner
    asyncio.get_running_loop().create_task(pool.transport.kill(pool.members[0].actors))


@pytest.mark.parametrize("bound", [0, 1])
def test_a_dead_learner_is_rebuilt_from_its_checkpoint_and_nothing_is_lost(
    uninterrupted: Path, tmp_path: Path, bound: int
) -> None:
    deaths: list[int] = []

    def kill_once(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] == 3 and not deaths:
            deaths.append(line["policy_version"])
            kill_the_learner(run)

    simulation = Simulation(recipe(tmp_path, max_staleness=bound), kill_once)
    assert simulation.go() == DONE
    assert_whole(tmp_path, uninterrupted, bound)
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["learner_rebuilds"] == 1 and any("rebuilt" in notice for notice in simulation.notices)
    lost = (simulation.directory / "metrics.jsonl.lost").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lost] == [3], "back to the checkpoint of step 2"
    assert_sampled_with_newer(tmp_path, range(3, STEPS + 1), than=deaths[0])


def test_payloads_in_flight_to_a_dead_learner_are_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback's frames would keep its payloads in the object store. Garbage collection is rare in a driver, and off
    here."""
    given: list[weakref.ref[Any]] = []  # a payload of each batch that a learner was given
    held: list[int] = []  # how many were held when a step was done
    step = LearnerGroup.step

    async def noted(self: LearnerGroup, batch: Sequence[Scored], *arguments: Any, **named: Any) -> Any:
        given.append(weakref.ref(batch[0].samples))
        return await step(self, batch, *arguments, **named)

    def on_step(run: Run, line: Mapping[str, Any]) -> None:
        held.append(sum(payload() is not None for payload in given))
        if line["step"] == 3 and len(held) == 3:
            kill_the_learner(run)

    monkeypatch.setattr(LearnerGroup, "step", noted)
    simulation = Simulation(recipe(tmp_path, max_staleness=1), on_step)
    gc.disable()
    try:
        assert simulation.go() == DONE
    finally:
        gc.enable()
    assert simulation.run._deaths == [3]
    assert held == [1] * len(held), "the batch of the step alone"


def test_a_learner_that_dies_before_its_first_checkpoint_restarts_from_the_beginning(
    uninterrupted: Path, tmp_path: Path
) -> None:
    deaths: list[int] = []

    def kill_once(run: Run, line: Mapping[str, Any]) -> None:
        if not deaths:
            deaths.append(1)
            kill_the_learner(run)

    assert Simulation(recipe(tmp_path), kill_once).go() == DONE
    assert_whole(tmp_path, uninterrupted)


def test_a_rank_that_hangs_while_others_publish_is_found_by_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 has published: without ZeRO-3 it does not wait for other ranks."""
    publish, asked = SimulatedLearner.publish, list[int]()

    async def hanging(self: SimulatedLearner, model: str | None = None) -> AsyncIterator[Any]:
        asked.append(self._rank)
        if self._rank == 1 and asked.count(1) == 3:
            await asyncio.Event().wait()
        for part in publish(self, model):
            yield part

    monkeypatch.setattr(SimulatedLearner, "publish", hanging)
    simulation = Simulation(recipe(tmp_path, learner={"ranks": 2}, deadlines={"learn": 0.3}))
    assert simulation.go() == DONE
    assert any("gave no answer to publish in 0.3 s" in notice for notice in simulation.notices)
    assert_each_once(tmp_path)


class FailingTwice(LocalTransport):
    """The first two rebuilt learners die while they start."""

    spawned = 0

    async def spawn(self, spec: GangSpec) -> Any:
        self.spawned += spec.cls is SimulatedLearner
        if spec.cls is SimulatedLearner and self.spawned in (2, 3):
            raise MemberDied("no room yet")
        return await super().spawn(spec)


@pytest.mark.parametrize("found", [False, True])
def test_a_learner_that_dies_while_it_is_rebuilt_is_rebuilt_again(tmp_path: Path, found: bool) -> None:
    """Whether the run started the first learner, or found it running."""
    deaths: list[int] = []

    def kill_once(run: Run, line: Mapping[str, Any]) -> None:
        if not deaths:
            deaths.append(1)
            kill_the_learner(run)

    simulation = Simulation(recipe(tmp_path), kill_once, transport=FailingTwice())

    async def story() -> int:
        if found:
            await simulation.pools.learner.members.start(1)
        return await simulation.run.execute()

    assert asyncio.run(asyncio.wait_for(story(), 20.0)) == DONE
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["learner_rebuilds"] == 2


def test_a_learner_that_dies_while_the_run_starts_leaves_no_role_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two rollouts is up by then, the other is starting."""
    start, starting, deaths = SimulatedLearner.start, list[int](), list[int]()

    async def slowly(self: SimulatedRollout) -> None:
        starting.append(1)
        await asyncio.sleep(0.0 if len(starting) % 2 else 60.0)

    async def fatally(self: SimulatedLearner, *arguments: Any) -> None:
        await asyncio.sleep(30.0)
        deaths.append(1)
        if len(deaths) == 1:
            raise MemberDied("out of memory")
        start(self, *arguments)

    monkeypatch.setattr(SimulatedRollout, "start", slowly)
    monkeypatch.setattr(SimulatedLearner, "start", fatally)
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go_in_own_time() == DONE
    assert simulation.pools.rollout is not None and len(simulation.pools.rollout.members.serving()) == 2
    assert json.loads((tmp_path / "sim" / "summary.json").read_text())["learner_rebuilds"] == 1
    assert_each_once(tmp_path)


def test_a_step_that_kills_every_learner_ends_the_run_with_a_message(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SimulatedLearner.step

    def fatal(self: SimulatedLearner, share: Share) -> Any:
        if share.step == 4:
            raise MemberDied("out of memory")
        return step(self, share)

    with monkeypatch.context() as patch, pytest.raises(RoleFailed, match="learner died in step: out of memory"):
        patch.setattr(SimulatedLearner, "step", fatal)
        Simulation(recipe(tmp_path)).go()
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert_whole(tmp_path, uninterrupted)


def test_learners_that_die_at_different_steps_without_progress_end_the_run(tmp_path: Path) -> None:
    """Each death returns to the start, and no attempt gets further than the first."""
    ends = [4, 2, 3]

    def kill(run: Run, line: Mapping[str, Any]) -> None:
        if ends and line["step"] == ends[0]:
            ends.pop(0)
            kill_the_learner(run)

    with pytest.raises(RoleFailed, match="learner died"):
        Simulation(recipe(tmp_path, checkpoint={"every": 0}), kill).go()
    assert not ends


def test_a_learner_may_die_after_every_new_step(uninterrupted: Path, tmp_path: Path) -> None:
    killed: set[int] = set()

    def kill(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] < STEPS and line["step"] not in killed:
            killed.add(line["step"])
            kill_the_learner(run)

    assert Simulation(recipe(tmp_path, checkpoint={"every": 1}), kill).go() == DONE
    assert killed == set(range(1, STEPS))
    assert_whole(tmp_path, uninterrupted)
