"""Sizes that are asked for while others are under way, while members start or a run stops; and swaps in a live run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.member import Member
from configs.roles.sizes import Resources
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import GangSpec, LocalTransport
from orchestrator.scaling.elastic import Elastic
from orchestrator.surface.driver import obey
from orchestrator.surface.status import status_of
from tests.unit.simulation import Simulation, recipe


class Gated(Member):
    """Starts when the gate opens, like a member that waits for a place."""

    gate: asyncio.Event

    async def start(self) -> None:
        await self.gate.wait()


def gated(gate: asyncio.Event, open_at_once: bool = False) -> Pool:
    cls = type("GatedNow", (Gated,), {"gate": gate})
    if open_at_once:
        gate.set()
    return Pool("echo", LocalTransport(), lambda number: GangSpec("echo", cls, ((),), Resources()))


async def until(true: Any) -> None:
    async with asyncio.timeout(2):
        while not true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("sizes", [(4, 2), (2, 4), (4, 1), (4, 2, 3), (1, 3, 1, 2)])
def test_the_last_of_several_sizes_decides(sizes: tuple[int, ...], begun: bool) -> None:
    async def story() -> None:
        gate = asyncio.Event()
        pool = gated(gate)
        gate.set()
        await pool.members.start(1)
        first = pool.members[0]
        gate.clear()
        asked = []
        for size in sizes:
            asked.append(asyncio.create_task(pool.members.resize(size)))
            await asyncio.sleep(0.005 if begun else 0)
        assert pool.members.serving() == [first], "who serves stays while others have no place yet"
        gate.set()
        await asyncio.gather(*asked)
        await until(lambda: len(pool.members) == len(pool.members.serving()))
        assert len(pool.members) == sizes[-1] and first in pool.members

    asyncio.run(story())


def test_a_starting_replacement_counts_as_a_member() -> None:
    async def story() -> None:
        pool = gated(asyncio.Event(), open_at_once=True)
        await pool.members.start(2)
        pool.members.replace(pool.members[0])
        await pool.members.resize(2)
        await until(lambda: len(pool.members) == len(pool.members.serving()))
        assert len(pool.members) == 2

    asyncio.run(story())


def test_a_starting_replacement_can_be_cancelled() -> None:
    async def story() -> None:
        gate = asyncio.Event()
        pool = gated(gate)
        gate.set()
        await pool.members.start(2)
        gate.clear()
        pool.members.replace(pool.members[0])
        await asyncio.sleep(0)
        await pool.members.resize(1)
        gate.set()
        await until(lambda: len(pool.members) == 1)
        pool.members.check()
        assert pool.members.serving() == [*pool.members]

    asyncio.run(story())


def test_a_stop_does_not_wait_for_a_scale_that_has_no_place(tmp_path: Path) -> None:
    async def story() -> None:
        run = Simulation(recipe(tmp_path)).run
        elastic = Elastic(run, lambda text: None)
        reward, stopped, gate = run.pools.reward, asyncio.Event(), asyncio.Event()
        await reward.members.start(1)
        cls = type("GatedNow", (Gated,), {"gate": gate})
        reward.startup.spec = lambda number: GangSpec("reward", cls, ((),), Resources())
        run.stop = stopped.set  # type: ignore[method-assign]
        commands: asyncio.Queue[tuple[str, dict[str, int]]] = asyncio.Queue()
        for command in (("scale", {"reward": 3}), ("stop", {}), ("scale", {"reward": 2})):
            commands.put_nowait(command)
        control = SimpleNamespace(next_command=SimpleNamespace(remote=commands.get))
        obeying = asyncio.create_task(obey(run, elastic, control))
        async with asyncio.timeout(2):
            await stopped.wait()
        assert not gate.is_set() and len(reward.members.serving()) == 1
        await until(lambda: len(reward.members) == 2)
        gate.set()
        await until(lambda: len(reward.members.serving()) == 2)
        obeying.cancel()
        await elastic.close()

    asyncio.run(story())


def test_status_shows_a_member_that_loads_a_swap(tmp_path: Path) -> None:
    async def story() -> None:
        run = Simulation(recipe(tmp_path)).run
        elastic, scorers = Elastic(run, lambda text: None), run.pools.scorers["teacher"]
        await scorers.members.start(2)
        async with scorers.members.apart(scorers.members[1]):
            states = {m["name"]: m["state"] for m in status_of(run, elastic, "training")["members"]}
        assert states == {"scorer.teacher-0": "serving", "scorer.teacher-1": "loading"}

    asyncio.run(story())


def test_a_swap_that_comes_too_late_is_noticed_and_commands_go_on(tmp_path: Path) -> None:
    async def story() -> None:
        simulation = Simulation(recipe(tmp_path))
        run, stopped = simulation.run, asyncio.Event()
        run.stop = stopped.set  # type: ignore[method-assign]
        run.progress.step = run.recipe.run.steps - 1
        commands: asyncio.Queue[tuple[str, dict[str, str]]] = asyncio.Queue()
        for command in (("swap", {"teacher": "/b"}), ("stop", {})):
            commands.put_nowait(command)
        control = SimpleNamespace(next_command=SimpleNamespace(remote=commands.get))
        obeying = asyncio.create_task(obey(run, Elastic(run, lambda text: None), control))
        async with asyncio.timeout(2):
            await stopped.wait()
        obeying.cancel()
        assert [line for line in simulation.notices if line.startswith("swap: models.teacher.swaps: 7 is beyond")]

    asyncio.run(story())


def test_autoscaling_ignores_a_persons_failed_scale(tmp_path: Path) -> None:
    """That a large size finds no place does not mean that one more member finds none."""

    async def story() -> None:
        elastic = Elastic(Simulation(recipe(tmp_path)).run, lambda text: None)
        for by_itself, full in ((False, set()), (True, {"rollout"})):
            elastic._pools["rollout"].startup.spec = lambda number: (_ for _ in ()).throw(RuntimeError("no place"))
            elastic.scale({"rollout": 50}, by_itself)
            await until(lambda: not elastic._resizing)
            assert elastic._autoscaler._full == full

    asyncio.run(story())


def test_closing_cancels_resizes_under_way(tmp_path: Path) -> None:
    async def story() -> None:
        run = Simulation(recipe(tmp_path)).run
        elastic, reward = Elastic(run, lambda text: None), run.pools.reward
        await reward.members.start(1)
        cls = type("GatedNever", (Gated,), {"gate": asyncio.Event()})
        reward.startup.spec = lambda number: GangSpec("reward", cls, ((),), Resources())
        elastic.scale({"reward": 3})
        await until(lambda: len(reward.members) == 3)
        await elastic.close()
        assert reward.members.serving() == [*reward.members] and len(reward.members) == 1

    asyncio.run(story())


def test_a_replacement_inherits_the_restart_count() -> None:
    async def story() -> None:
        pool = gated(asyncio.Event(), open_at_once=True)
        await pool.members.start(2)
        for restarts in (1, 2):
            pool.members.replace(next(m for m in pool.members if m.restarts == restarts - 1))
            await until(lambda: len(pool.members.serving()) == 2)
            assert restarts in {member.restarts for member in pool.members}
        assert pool.members.restarts == 2 == sum(member.restarts for member in pool.members)

    asyncio.run(story())
