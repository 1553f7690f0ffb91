"""A pool by itself: where calls go, what happens when their members die, and how it grows and shrinks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.member import Member
from configs.roles.sizes import Resources
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.startup import RoleFailed
from orchestrator.pools.transport import GangSpec, LocalTransport, MemberDied
from tests.unit.runs.deaths import kill_when


class Echo(Member):
    async def start(self) -> None: ...

    async def slowly(self, value: int) -> tuple[int, int]:
        await asyncio.sleep(0.005)
        return value, value + 1

    async def load(self, version: int, *rest: Any) -> int:
        return version


def echoes(transport: LocalTransport) -> Pool:
    return Pool("echo", transport, lambda number: GangSpec("echo", Echo, ((),), Resources()))


async def settled(pool: Pool, size: int) -> None:
    async with asyncio.timeout(2):
        while len(pool.members.serving()) != size:
            await asyncio.sleep(0.001)


def test_a_call_is_made_again_on_another_member() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)
        await pool.members.start(2)
        first, second = pool.members
        killing = asyncio.create_task(kill_when(transport, pool, lambda member: member.load > 0))
        ref, value = await pool.call("slowly", 4, load=10, returns=2)
        await killing
        assert (await transport.value(ref), value) == (4, 5)
        assert first not in pool.members and second in pool.members and second.load == 0
        await settled(pool, 2)
        assert pool.members.restarts == 1

    asyncio.run(story())


def test_a_call_waits_for_a_replacement_when_nobody_serves() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)
        await pool.members.start(1)
        await transport.kill(pool.members[0].actors)
        assert await pool.call("slowly", 4) == [(4, 5)]

    asyncio.run(story())


def test_a_call_that_kills_every_member_fails_with_a_message() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)

        class Fragile(Echo):
            async def slowly(self, value: int) -> tuple[int, int]:
                raise MemberDied("out of memory")

        pool.startup.spec = lambda number: GangSpec("echo", Fragile, ((),), Resources())
        await pool.members.start(2)
        with pytest.raises(RoleFailed, match="echo: slowly failed on 3 members; out of memory"):
            await pool.call("slowly", 4)
        assert pool.retries == 2

    asyncio.run(story())


def test_calls_go_to_the_member_with_the_least_load() -> None:
    async def story() -> None:
        pool = echoes(LocalTransport())
        await pool.members.start(2)
        calls = [asyncio.create_task(pool.call("slowly", 1, load=load)) for load in (5, 1, 1, 1)]
        await asyncio.sleep(0.001)
        assert [member.load for member in pool.members] == [5, 3]
        await asyncio.gather(*calls)
        assert [member.load for member in pool.members] == [0, 0]

    asyncio.run(story())


def test_a_pool_grows_and_shrinks_and_a_leaver_finishes_first() -> None:
    async def story() -> None:
        pool = echoes(LocalTransport())
        await pool.members.start(1)
        await pool.members.resize(3)
        assert len(pool.members.serving()) == 3
        calls = [asyncio.create_task(pool.call("slowly", i)) for i in range(3)]
        await asyncio.sleep(0.001)
        await pool.members.resize(1)
        assert await asyncio.gather(*calls) == [[(0, 1)], [(1, 2)], [(2, 3)]]
        await settled(pool, 1)

    asyncio.run(story())


def test_a_replacement_has_the_place_of_the_dead_and_a_new_member_the_smallest_free_one() -> None:
    async def story() -> None:
        pool = echoes(LocalTransport())
        await pool.members.start(3)
        pool.members[2].load = 1  # so that the second one leaves
        await pool.members.resize(2)
        async with asyncio.timeout(2):
            while len(pool.members) > 2:  # who leaves has its place until it is gone
                await asyncio.sleep(0.001)
        for _ in range(2):
            pool.members.replace(next(member for member in pool.members if member.place == 2))
            await settled(pool, 2)
        await pool.members.resize(3)
        assert [(member.number, member.place) for member in pool.members] == [(0, 0), (4, 2), (5, 1)]

    asyncio.run(story())


def test_a_leaver_that_dies_is_not_replaced() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)
        await pool.members.start(2)
        calls = [asyncio.create_task(pool.call("slowly", i)) for i in range(2)]
        await asyncio.sleep(0.001)
        await pool.members.resize(1)
        await kill_when(transport, pool, lambda member: not member.serving)
        await asyncio.gather(*calls)
        await asyncio.sleep(0.1)
        assert len(pool.members.serving()) == 1

    asyncio.run(story())


def test_a_joiner_that_dies_in_its_first_pull_is_replaced() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)

        async def admit(member: PoolMember) -> None:
            if member.number == 0:
                await transport.kill(member.actors)
            await pool.call_member(member, "load", 1)

        pool.startup.admit = admit
        await pool.members.start(1)
        assert pool.members.restarts == 1 and [member.number for member in pool.members.serving()] == [1]

    asyncio.run(story())


def test_a_new_member_is_not_taken_for_a_dead_one() -> None:
    async def story() -> None:
        transport = LocalTransport()
        spec = GangSpec("echo", Echo, ((),), Resources())
        for _ in range(50):
            actors = await transport.spawn(spec)
            await transport.value(transport.call(actors[0], "ping")[0])
            await transport.kill(actors)
            del actors

    asyncio.run(story())
