"""What a member yields arrives, and then what ended it before its time: over Ray as in the tests' own process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from actors.member import Member
from configs.schema import Resources
from orchestrator.pool import Pool, PoolMember
from orchestrator.transport import GangSpec, LocalTransport, MemberDied, RayTransport, Transport


def end(how: str) -> None:
    if how == "dies":
        time.sleep(0.2)  # what was yielded may be on its way
        os._exit(1)
    if how == "raises":
        raise ValueError("the engine says no")


class Synchronous(Member):
    """Yields numbers, and ends well or in the way it is told."""

    def start(self) -> None: ...

    def count(self, numbers: int, how: str) -> Iterator[Any]:
        yield from (number for number in range(numbers))  # Ray sends to what it iterates
        end(how)


class Asynchronous(Member):
    async def start(self) -> None: ...

    async def count(self, numbers: int, how: str) -> AsyncIterator[Any]:
        for number in range(numbers):
            yield number
        if how == "waits":
            await asyncio.Event().wait()
        end(how)

    async def wait(self) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def counters(transport: Transport, cls: type) -> AsyncIterator[Pool]:
    spec = GangSpec("counter", cls, ((),), Resources(cpus=0.01))
    pool = Pool("counter", transport, lambda _: spec)
    try:
        await pool.start(1)
        yield pool
    finally:
        await pool.stop()


async def heard(pool: Pool, member: PoolMember, numbers: int, how: str) -> list[Any]:
    """The pairs that came of numbers from 0, and the kind of what was raised."""
    came: list[Any] = []
    try:
        async for payload, header in pool.stream(member, "count", numbers, how):
            came.append((await pool.transport.value(payload), header))
    except (ValueError, MemberDied) as error:
        came.append(type(error))
    return came


@pytest.mark.parametrize("cls", [Synchronous, Asynchronous])
@pytest.mark.parametrize("transport", [RayTransport, LocalTransport])
def test_what_ends_a_stream_is_raised_after_what_came_whole(
    ray_cluster: None, runner: asyncio.Runner, transport: type[Transport], cls: type
) -> None:
    async def story() -> None:
        async with counters(transport(), cls) as pool:
            for numbers, whole in ((0, []), (3, [(0, 1)]), (2, [(0, 1)])):
                member = await pool.route()
                assert await heard(pool, member, numbers, "raises") == [*whole, ValueError]
                assert member in pool.members
                if transport is RayTransport:  # the other one's members have no process of their own
                    assert await heard(pool, member, numbers, "dies") == [*whole, MemberDied]
                    assert member not in pool.members, "it is replaced"
            assert await heard(pool, await pool.route(), 4, "ends") == [(0, 1), (2, 3)]

    runner.run(story())


@pytest.mark.parametrize("transport", [RayTransport, LocalTransport])
def test_who_is_killed_answers_nobody(ray_cluster: None, runner: asyncio.Runner, transport: type[Transport]) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), counters(transport(), Asynchronous) as pool:
            member = await pool.route()
            listening = asyncio.ensure_future(heard(pool, member, 4, "waits"))
            calling = asyncio.ensure_future(pool.call_member(member, "wait"))
            await asyncio.sleep(0.5)
            assert not listening.done() and not calling.done()
            await pool.transport.kill(member.actors)
            assert await listening == [(0, 1), (2, 3), MemberDied]
            with pytest.raises(MemberDied):
                await calling
            with pytest.raises(MemberDied):
                await pool.call_member(member, "ping")

    runner.run(story())
