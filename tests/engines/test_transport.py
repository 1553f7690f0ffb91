"""What a member yields arrives, and then what ended it before its time: over Ray as in the tests' own process."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.member import Member
from configs.roles.sizes import Resources
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import GangSpec, LocalTransport, MemberDied, RayTransport, Transport
from tests.processes import alive


def end(how: str) -> None:
    if how == "dies":
        time.sleep(2.0)  # what was yielded may be on its way
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


class Author(Member):
    """Yields payloads that nobody else has, and opens those of others."""

    async def start(self) -> None: ...

    async def write(self, sizes: Sequence[int]) -> AsyncIterator[Any]:
        for size in sizes:
            yield written(size)
            yield size
        await asyncio.Event().wait()

    async def digest(self, payload: pa.RecordBatch) -> tuple[int, str]:
        return os.getpid(), digest_of(payload)


def written(size: int) -> pa.RecordBatch:
    """A payload of about `size` bytes."""
    return pa.record_batch({"tokens": np.random.default_rng(size).integers(0, 50000, size // 4, np.int32)})


def digest_of(payload: pa.RecordBatch) -> str:
    return hashlib.sha256(payload.column("tokens").buffers()[1]).hexdigest()


@asynccontextmanager
async def pool_of(transport: Transport, cls: type) -> AsyncIterator[Pool]:
    spec = GangSpec("member", cls, ((),), Resources(cpus=0.01))
    pool = Pool("member", transport, lambda _: spec)
    try:
        await pool.members.start(1)
        yield pool
    finally:
        await pool.members.stop()


async def heard(pool: Pool, member: PoolMember, numbers: int, how: str, came: list[Any] | None = None) -> list[Any]:
    """The pairs that came of numbers from 0, and the kind of what was raised; `came` is that list as it grows."""
    came = [] if came is None else came
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
        async with pool_of(transport(), cls) as pool:
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
        async with asyncio.timeout(60), pool_of(transport(), Asynchronous) as pool:
            member = await pool.route()
            came: list[Any] = []
            listening = asyncio.ensure_future(heard(pool, member, 4, "waits", came))
            calling = asyncio.ensure_future(pool.call_member(member, "wait"))
            while len(came) < 2:
                await asyncio.sleep(0.01)
            assert not listening.done() and not calling.done()
            await pool.transport.kill(member.actors)
            assert await listening == [(0, 1), (2, 3), MemberDied]
            with pytest.raises(MemberDied):
                await calling
            with pytest.raises(MemberDied):
                await pool.call_member(member, "ping")

    runner.run(story())


def test_what_a_killed_member_has_yielded_can_still_be_opened(ray_cluster: None, runner: asyncio.Runner) -> None:
    """By its replacement, which is given the reference as a scorer is, and by the driver. Ray keeps what is larger than
    100 KiB in the object store, and nobody has opened it before."""
    sizes = [1_000, 300_000, 50_000, 2_000_000, 150_000, 1_000]

    async def story() -> None:
        async with pool_of(RayTransport(), Author) as pool:
            member = await pool.route()
            dead, came = await pool.call_member(member, "ping"), []
            with pytest.raises(MemberDied):
                async for payload, size in pool.stream(member, "write", sizes):
                    came.append((payload, size))
                    if len(came) == len(sizes):
                        os.kill(dead, signal.SIGKILL)
            assert [size for _, size in came] == sizes
            while alive({dead}):  # Ray may know first
                await asyncio.sleep(0.01)
            for payload, size in came:
                ((opener, digest),) = await pool.call("digest", payload)
                assert opener != dead and digest == digest_of(written(size))
                assert digest_of(await pool.transport.value(payload)) == digest

    runner.run(story())
