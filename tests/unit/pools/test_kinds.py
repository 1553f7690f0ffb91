"""Roles whose members differ: what each is made of, who comes in the place of whom, and who gets the next call."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.member import Member
from actors.simulated.known import Speeds
from configs.roles.sizes import Resources
from configs.schema import Recipe
from orchestrator.placement.on_ray import NoPlace
from orchestrator.pools.layout import REAL, MemberSpecs, build_pools, demands
from orchestrator.pools.membership import Membership
from orchestrator.pools.pool import Pool
from orchestrator.pools.sick import OUT_OF_MEMORY
from orchestrator.pools.startup import RoleFailed
from orchestrator.pools.transport import GangSpec, LocalTransport
from orchestrator.pools.waiting import WaitingLine
from orchestrator.run import DONE, Run
from tests.unit.own_time import in_own_time
from tests.unit.pools.workers import Queue, Worker
from tests.unit.simulation import Simulation, recipe, simulated

WIDE = {"kinds": {"wide": {"members": 1, "resources": {"cpus": 4}}}}


def mixed(root: Path) -> Recipe:
    """Rollouts and scorers of two kinds each."""
    return recipe(root, rollout={"members": 2} | WIDE, scorer={"teacher": {"members": 1} | WIDE})


class Echo(Member):
    async def start(self) -> None: ...


def spec(cpus: float, cls: type = Echo, *arguments: Any) -> Any:
    return lambda number: GangSpec("echo", cls, (arguments,), Resources(cpus=cpus))


def of_two_kinds(**more: Any) -> Pool:
    return Pool("echo", LocalTransport(), spec(1), kinds={"wide": spec(4)}, **more)


def made(members: Membership) -> dict[int, tuple[str, float]]:
    """The kind of each member by its number, and the CPUs of what it is made of."""
    return {m.number: (m.kind, members.startup.spec_of(m).resources.cpus) for m in members}


def kinds_of(members: Membership) -> Mapping[str, int]:
    return Counter(member.kind for member in members.serving())


async def until(true: Any) -> None:
    async with asyncio.timeout(2):
        while not true():
            await asyncio.sleep(0.001)


# --- what they are made of ---


@pytest.mark.parametrize("members", [REAL, simulated(Speeds())], ids=["real", "simulated"])
def test_members_of_a_kind_are_made_by_its_keys(tmp_path: Path, members: MemberSpecs) -> None:
    pools = build_pools(mixed(tmp_path), LocalTransport(), 1000, None, members).all()
    for role in ("rollout", "scorer.teacher"):
        startup = pools[role].startup
        own, wide = startup.spec(0), startup.kinds["wide"](0)
        assert (own.role, wide.role) == (role, role) and own.cls is wide.cls, "one role, whatever its members' size"
        assert (own.resources.cpus, wide.resources.cpus) == (0.5, 4.0)
    assert not pools["reward"].startup.kinds


def test_an_engine_of_a_kind_gets_the_kinds_keys(tmp_path: Path) -> None:
    wide = {"tensor_parallel": 2, "max_concurrent": 7, "resources": {"gpus": 2}}
    settings = recipe(tmp_path, rollout={"resources": {"gpus": 1}, "kinds": {"wide": wide}})
    startup = build_pools(settings, LocalTransport(), 1000, None).all()["rollout"].startup
    own, other = (made(0).arguments[0][0] for made in (startup.spec, startup.kinds["wide"]))
    assert (own.tensor_parallel, own.max_concurrent, own.kinds) == (1, 0, {})
    assert (other.tensor_parallel, other.max_concurrent, other.kinds) == (2, 7, {})
    assert own.dtype == other.dtype == "bfloat16"


def test_each_kind_is_a_demand_of_its_role(tmp_path: Path) -> None:
    found = {d.name: (d.role, d.kind, d.members, d.cpus) for d in demands(mixed(tmp_path))}
    assert found["rollout"] == ("rollout", "", 2, 1.0)
    assert found["rollout.kinds.wide"] == ("rollout", "wide", 1, 4.0)
    assert found["scorer.teacher.kinds.wide"] == ("scorer.teacher", "wide", 1, 4.0)


# --- who is there ---


def test_a_role_starts_with_its_own_members_and_those_of_its_kinds() -> None:
    async def story() -> None:
        pool = of_two_kinds()
        await pool.members.start(2, {"wide": 1})
        assert made(pool.members) == {0: ("", 1.0), 1: ("", 1.0), 2: ("wide", 4.0)}

    asyncio.run(story())


def test_a_successor_is_of_the_kind_of_the_dead() -> None:
    async def story() -> None:
        pool = of_two_kinds()
        await pool.members.start(1, {"wide": 1})
        for _ in range(2):
            wide = next(m for m in pool.members if m.kind)
            pool.members.replace(wide)
            await until(lambda: len(pool.members.serving()) == 2)
        pool.members.replace(next(m for m in pool.members if not m.kind))
        await until(lambda: len(pool.members.serving()) == 2)
        assert made(pool.members) == {3: ("wide", 4.0), 4: ("", 1.0)}
        assert {(m.kind, m.restarts) for m in pool.members} == {("wide", 2), ("", 1)}

    asyncio.run(story())


@pytest.mark.parametrize("error", [NoPlace("no place yet"), None], ids=["no place", "died"])
def test_a_successor_that_is_tried_again_keeps_its_kind(error: Exception | None) -> None:
    """As when its node is gone for a while, or it dies while it starts."""

    class Fragile(Echo):
        births = 0

        async def start(self) -> None:
            type(self).births += 1
            if self.births == 2:
                raise MemoryError

    tries: list[int] = []

    def wide(number: int) -> GangSpec:
        tries.append(number)
        if error and len(tries) == 2:
            raise error
        return spec(4, Echo if error else Fragile)(number)

    async def story() -> None:
        pool = of_two_kinds()
        pool.startup.kinds = {"wide": wide}
        await pool.members.start(1, {"wide": 1})
        pool.members.replace(pool.members[1])
        await until(lambda: len(tries) == 3 and len(pool.members.serving()) == 2)
        assert kinds_of(pool.members) == {"": 1, "wide": 1}

    asyncio.run(story())


@pytest.mark.parametrize("sizes", [(3,), (1,), (4, 1, 2)])
def test_only_a_roles_own_members_change_in_number(sizes: tuple[int, ...]) -> None:
    async def story() -> None:
        pool = of_two_kinds()
        await pool.members.start(2, {"wide": 2})
        for size in sizes:
            await pool.members.resize(size)
        await until(lambda: len(pool.members) == len(pool.members.serving()))
        assert kinds_of(pool.members) == {"": sizes[-1], "wide": 2}

    asyncio.run(story())


def test_members_that_are_taken_over_keep_their_kind() -> None:
    async def story() -> None:
        left, pool = of_two_kinds(), of_two_kinds()
        pool.transport = pool.startup.transport = left.transport
        await left.members.start(2, {"wide": 1})
        left.members.replace(left.members[0])
        await until(lambda: len(left.members.serving()) == 3)
        pool.startup.renew = lambda member: asyncio.sleep(0)  # type: ignore[method-assign]
        await pool.members.take_over(left.members)
        assert [m.kind for m in pool.members] == ["", "wide", ""]

    asyncio.run(story())


def test_a_kind_that_runs_out_of_memory_is_named_whatever_others_answer() -> None:
    """Work that fits a larger member says nothing of a smaller one."""

    class Short(Worker):
        async def work(self) -> int:
            raise torch.OutOfMemoryError("CUDA out of memory")

    async def story() -> None:
        kinds = {"small": spec(1, Short, 1, {})}
        pool = Pool("rollout", LocalTransport(), spec(1, Worker, 0, {}), kinds=kinds)
        await pool.members.start(1, {"small": 1})
        said: list[str] = []
        for _ in range(OUT_OF_MEMORY):
            assert await pool.call("work", load=8, near=0) == [0]
            with pytest.raises(RoleFailed) as failure:
                await pool.call("work", load=8, near=1, patience="once")
            said.append(str(failure.value))
            await until(lambda: len(pool.members.serving()) == 2)
        assert said[-1].startswith("rollout.kinds.small: out of memory 3 times in work")
        assert "lower rollout.kinds.small.max_concurrent" in said[-1]

    asyncio.run(story())


# --- who gets the next call ---


def test_a_call_goes_to_the_member_with_the_least_load_for_its_bound() -> None:
    async def story() -> None:
        pool = of_two_kinds(line=WaitingLine(10, {"wide": 40}))
        await pool.members.start(1, {"wide": 1})
        taken = [(await pool.route(load=5)).kind for _ in range(10)]
        assert Counter(taken) == {"": 2, "wide": 8} and taken[:2] == ["", "wide"]
        assert pool.line.most(pool.members) == 50
        waiting = asyncio.ensure_future(pool.route(load=5))
        await asyncio.sleep(0)
        assert not waiting.done(), "both have what they may have"
        pool.remove_load(pool.members[1], 5)
        assert (await waiting).kind == "wide"

    asyncio.run(story())


def test_members_of_one_bound_share_calls_as_without_kinds() -> None:
    async def story() -> None:
        pool = of_two_kinds(line=WaitingLine(10))
        await pool.members.start(1, {"wide": 1})
        assert [(await pool.route(load=3)).number for _ in range(4)] == [0, 1, 0, 1]

    asyncio.run(story())


def test_what_waits_is_shared_by_what_each_may_have() -> None:
    async def story() -> None:
        own, wide = (spec(1, Queue, number, {}) for number in range(2))
        pool = Pool("queue", LocalTransport(), own, kinds={"wide": wide}, line=WaitingLine(10, {"wide": 20}))
        await pool.members.start(1, {"wide": 1})
        answers = await asyncio.gather(*(pool.call("work", str(i), load=10) for i in range(6)))
        assert Counter(number for (number,) in answers) == {0: 2, 1: 4}
        assert pool.load() == 0

    in_own_time(story())


def test_slots_and_congestion_count_what_members_of_each_kind_may_have(tmp_path: Path) -> None:
    seen: list[tuple[int, dict[int, int]]] = []

    def look(run: Run, line: Mapping[str, Any]) -> None:
        if run.stage is None or seen:
            return
        (own, wide), rollouts = run.pools.scorers["teacher"].members, run.pools.rollout
        assert rollouts is not None
        held = own.load, wide.load
        for load in (40, 41):  # and 100 of the other
            own.load, wide.load = load, 100
            free = run.stage.rollouts.free_slots(run.progress.version).get("student", {})
            seen.append((load, {number: slots.of for number, slots in free.items()}))
        own.load, wide.load = held

    rollout = {"members": 1, "max_concurrent": 8, "kinds": {"wide": {"max_concurrent": 24}}}
    scorer = {"members": 1, "max_queued_tokens": 40, "kinds": {"wide": {"max_queued_tokens": 100}}}
    assert Simulation(recipe(tmp_path, rollout=rollout, scorer={"teacher": scorer}), look).go() == DONE
    assert seen == [(40, {0: 8, 1: 24}), (41, {})]
