"""Rollouts, scorers and reward members that die or lose values: their work is done again, and none is trained twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.records import BadWeights
from orchestrator.placement.on_ray import NoPlace
from orchestrator.pools.transport import GangSpec, LocalTransport
from orchestrator.run import DONE, Run
from tests.unit.runs.deaths import VISIBLE, Assassin, has_yielded, kill_when, lose_a_value
from tests.unit.simulation import (
    Simulation,
    assert_each_once,
    assert_none_aged,
    expected_order,
    learned,
    metrics,
    order_of,
    recipe,
    trained,
)


@pytest.mark.parametrize("bound", [0, 1])
def test_a_rollout_that_dies_in_mid_lease_is_leased_again(tmp_path: Path, bound: int) -> None:
    simulation = Simulation(
        recipe(tmp_path, max_staleness=bound, on_stale="wait"), Assassin("rollout", has_yielded), speeds=VISIBLE
    )
    assert simulation.go() == DONE
    rows, pool = trained(tmp_path), simulation.pools.rollout
    assert_each_once(tmp_path)
    assert {row["attempt"] for row in rows} == {0, 1}
    assert pool is not None and pool.members.restarts == 1 and len(pool.members.serving()) == 2
    assert pool.retries == sum(row["attempt"] for row in rows)
    assert_none_aged(tmp_path, bound)


def test_blocks_that_a_dying_rollout_yielded_are_kept(tmp_path: Path) -> None:
    """Only unfinished responses get a second attempt; earlier blocks of the lease are trained as they are."""
    alone = recipe(tmp_path, rollout={"members": 1})
    assert Simulation(alone, Assassin("rollout", has_yielded), speeds=VISIBLE).go() == DONE
    rows = trained(tmp_path)
    (step,) = {row["step"] for row in rows if row["attempt"]}
    assert {row["attempt"] for row in rows if row["step"] == step} == {0, 1}
    generated = sum(line["tokens_generated"] for line in metrics(tmp_path))
    assert generated == sum(len(row["response_ids"]) for row in rows), "nothing that was yielded is sampled again"


def test_a_replacement_serves_the_current_version(tmp_path: Path) -> None:
    alone = recipe(tmp_path, rollout={"members": 1})
    assert Simulation(alone, Assassin("rollout", has_yielded), speeds=VISIBLE).go() == DONE
    assert_none_aged(tmp_path, 0)


@pytest.mark.parametrize("role", ["scorer.teacher", "reward"])
def test_a_death_of_a_stateless_member_changes_nothing(uninterrupted: Path, tmp_path: Path, role: str) -> None:
    assassin = Assassin(role, lambda run, member: member.load > 0 if role != "reward" else True)
    simulation = Simulation(recipe(tmp_path), assassin, speeds=VISIBLE)
    assert simulation.go() == DONE
    assert learned(tmp_path) == learned(uninterrupted)
    pool = simulation.pools.all()[role]
    assert pool.members.restarts == 1 and len(pool.members.serving()) == 2


def test_samples_of_a_rollout_that_dies_in_an_evaluation_are_resampled(uninterrupted: Path, tmp_path: Path) -> None:
    simulation = Simulation(recipe(tmp_path), speeds=VISIBLE)
    pool = simulation.pools.rollout
    assert pool is not None

    async def both() -> int:
        killing = asyncio.create_task(kill_when(simulation.transport, pool, lambda member: member.load > 0))
        code = await simulation.run.execute()
        await killing
        return code

    assert asyncio.run(both()) == DONE
    assert pool.members.restarts == 1
    assert [row["uid"] for row in trained(tmp_path, "eval_before")] == [
        row["uid"] for row in trained(uninterrupted, "eval_before")
    ]


def test_a_member_that_leaves_between_grant_and_lease_is_no_failure(tmp_path: Path) -> None:
    """As when a pull or another lease finds it dead, or `scale` ends it, in the same iteration of the event loop."""

    def leave_once(run: Run, line: Mapping[str, Any]) -> None:
        stage, pool = run.stage, run.pools.rollout
        if line["step"] != 2 or stage is None or pool is None:
            return
        grant = stage.leases.grant

        def grant_and_leave(*arguments: Any) -> Any:
            leases = grant(*arguments)
            if leases and not pool.members.restarts:
                pool.members.replace(next(m for m in pool.members if m.number == leases[0].member))
            return leases

        stage.leases.grant = grant_and_leave  # type: ignore[method-assign]

    simulation = Simulation(recipe(tmp_path), leave_once)
    assert simulation.go() == DONE
    assert order_of(trained(tmp_path)) == expected_order()
    assert simulation.pools.rollout is not None and simulation.pools.rollout.members.restarts == 1


def test_a_rollout_that_cannot_be_replaced_ends_the_run(tmp_path: Path) -> None:
    simulation = Simulation(recipe(tmp_path, rollout={"members": 1}), Assassin("rollout", has_yielded), speeds=VISIBLE)
    pool = simulation.pools.rollout
    assert pool is not None
    spec = pool.startup.spec

    def only_once(number: int) -> GangSpec:
        if number:
            raise RuntimeError("no place for rollout-1")
        return spec(number)

    pool.startup.spec = only_once
    with pytest.raises(ExceptionGroup) as error:
        simulation.go(seconds=3.0)
    assert error.group_contains(RuntimeError, match="no place for rollout-1")


@pytest.mark.parametrize("members", [1, 2])
def test_a_rollout_whose_node_is_gone_for_a_while_is_replaced_when_it_is_back_unless_nobody_else_serves(
    tmp_path: Path, members: int
) -> None:
    class Crowded(LocalTransport):
        tries = 0

        async def spawn(self, spec: GangSpec) -> Any:
            if spec.cls is SimulatedRollout and deaths:
                self.tries += 1
                await asyncio.sleep(1.0)
                if self.tries <= 3:
                    raise NoPlace("rollout: no place for 1 x {'GPU': 1}")
            return await super().spawn(spec)

    def strike(run: Run, line: Mapping[str, Any]) -> None:
        if not deaths and run.pools.rollout is not None:
            deaths.append(1)
            run.pools.rollout.members.replace(run.pools.rollout.members[0])

    deaths: list[int] = []
    settings = recipe(tmp_path, rollout={"members": members})
    simulation = Simulation(settings, strike, transport=Crowded(), speeds=Speeds(rollout=0.1))
    if members == 1:
        with pytest.raises(ExceptionGroup) as error:
            simulation.go_in_own_time()
        assert error.group_contains(NoPlace, match="no place for 1 x")
        return
    assert simulation.go_in_own_time() == DONE
    assert simulation.pools.rollout is not None and len(simulation.pools.rollout.members.serving()) == 2
    assert sum("tried again" in notice for notice in simulation.notices) == 3
    assert_each_once(tmp_path)


def test_a_member_whose_load_raises_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, failed = SimulatedRollout.load, []

    async def fail_once(self: SimulatedRollout, version: int, *rest: Any) -> int:
        if version == 2 and not failed:
            failed.append(self)
            raise BadWeights("version 2 changed on the way")
        return await load(self, version, *rest)

    monkeypatch.setattr(SimulatedRollout, "load", fail_once)
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go() == DONE
    assert simulation.pools.rollout is not None and simulation.pools.rollout.members.restarts == 1


@pytest.mark.parametrize(
    ("cls", "method", "call"),
    [
        pytest.param(SimulatedScorer, "score", 20, id="on the way to a scorer"),
        pytest.param(SimulatedReward, "reward", 20, id="on the way to a reward worker"),
        pytest.param(
            SimulatedScorer,
            "score",
            1,
            id="in an evaluation",
        ),
    ],
)
def test_samples_lost_with_a_node_are_resampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type, method: str, call: int
) -> None:
    lose_a_value(monkeypatch, cls, method, call)
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert order_of(trained(tmp_path)) == expected_order()
    in_training = call == 20
    assert sum(row["attempt"] for row in trained(tmp_path)) == in_training
