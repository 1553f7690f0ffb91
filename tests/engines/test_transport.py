"""What a member's generator yields arrives over Ray, and then what ended it before its time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from actors.member import Member
from configs.schema import Resources
from orchestrator.pool import Pool
from orchestrator.transport import GangSpec, MemberDied, RayTransport


def end(how: str) -> None:
    if how == "dies":
        time.sleep(0.2)  # what was yielded may be on its way
        os._exit(1)
    if how == "raises":
        raise ValueError("the engine says no")


class Synchronous(Member):
    """Yields numbers, and ends well or in the way it is told."""

    def count(self, numbers: int, how: str) -> Iterator[Any]:
        yield from (number for number in range(numbers))  # Ray sends to what it iterates
        end(how)


class Asynchronous(Member):
    async def count(self, numbers: int, how: str) -> AsyncIterator[Any]:
        for number in range(numbers):
            yield number
        await asyncio.sleep(0)
        end(how)


@pytest.mark.parametrize("cls", [Synchronous, Asynchronous])
def test_what_ends_a_stream_is_raised_after_what_came_whole(
    ray_cluster: None, runner: asyncio.Runner, cls: type
) -> None:
    spec = GangSpec("counter", cls, ((),), Resources(cpus=0.01))
    pool = Pool("counter", RayTransport(), lambda _: spec, starts_alone=False)

    async def heard(numbers: int, how: str) -> list[Any]:
        member, came = await pool.route(), list[Any]()
        try:
            async for payload, header in pool.stream(member, "count", numbers, how):
                came.append((await pool.transport.value(payload), header))
        except (ValueError, MemberDied) as error:
            came.append(type(error))
        assert (member in pool.members) == (how != "dies"), "the dead are replaced, others are not"
        return came

    async def story() -> None:
        for numbers, whole in ((0, []), (3, [(0, 1)]), (4, [(0, 1), (2, 3)])):
            for how, error in (("raises", ValueError), ("dies", MemberDied)):
                assert await heard(numbers, how) == [*whole, error]
        assert await heard(4, "ends") == [(0, 1), (2, 3)]

    runner.run(pool.start(1))
    try:
        runner.run(story())
    finally:
        runner.run(pool.stop())
