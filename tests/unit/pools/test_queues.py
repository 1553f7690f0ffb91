"""Calls that queue at a member or wait in line for one: deadlines, order, cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from configs.roles.deadlines import Deadlines
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import GangSpec
from tests.unit.own_time import in_own_time
from tests.unit.pools.workers import queues


def test_a_long_queue_is_no_hang() -> None:
    async def story() -> None:
        workers = queues(None, deadlines=Deadlines(learn=1.5))
        await workers.members.start(1)
        answers = await asyncio.gather(*(workers.call("work") for _ in range(20)))
        assert answers == [[0]] * 20 and workers.members.restarts == 0

    in_own_time(story())


def test_a_member_that_answers_all_but_one_call_is_replaced() -> None:
    async def story() -> None:
        workers, done = queues(None, lost=[0], deadlines=Deadlines(learn=30.0)), asyncio.Event()
        await workers.members.start(1)

        async def others() -> None:
            while not done.is_set():
                await workers.call("work")

        busy = asyncio.create_task(others())
        assert await workers.call("work") == [1] and workers.members.restarts == 1
        done.set()
        await busy

    in_own_time(story())


def test_calls_beyond_a_members_bound_wait_first_come_first_served() -> None:
    async def story() -> None:
        workers = queues(20)
        await workers.members.start(1)
        calls = [asyncio.create_task(workers.call("work", name, load=10)) for name in "abcdef"]
        await asyncio.sleep(0.5)
        (first,) = workers.members
        assert first.lead.asked == 2 and first.load == 20 and workers.load() == 60
        await workers.members.resize(2)
        await asyncio.sleep(0.1)
        second = workers.members[1]
        assert first.lead.asked == second.lead.asked == 2, "who joins takes of what waits"
        assert sorted(await asyncio.gather(*calls)) == [[0]] * 3 + [[1]] * 3
        assert (first.lead.taken, second.lead.taken) == (["a", "b", "e"], ["c", "d", "f"])
        assert workers.load() == 0

    in_own_time(story())


def test_a_call_that_waits_for_one_member_delays_no_other() -> None:
    async def story() -> None:
        workers = queues(10)
        await workers.members.start(2)
        near = [asyncio.create_task(workers.call("work", name, load=10, near=0)) for name in "abc"]
        others = [asyncio.create_task(workers.call("work", name, load=10)) for name in "de"]
        await asyncio.gather(*near, *others)
        assert [m.lead.taken for m in workers.members] == [["a", "b", "c"], ["d", "e"]]

    in_own_time(story())


async def one_of_three_is_answered() -> tuple[Pool, list[asyncio.Task[list[Any]]]]:
    """A pool whose only member takes one call at a time, and three calls; the first is half done."""
    workers = queues(10)
    await workers.members.start(1)
    calls = [asyncio.create_task(workers.call("work", load=10)) for _ in range(3)]
    await asyncio.sleep(0.5)
    return workers, calls


def test_a_cancelled_call_leaves_no_load() -> None:
    async def story() -> None:
        workers, calls = await one_of_three_is_answered()
        calls[1].cancel()  # it waits
        await asyncio.sleep(0)
        assert workers.load() == 20
        (member,) = workers.members
        calls[0].cancel()  # it is being answered: its place goes to the third
        await asyncio.sleep(0)
        assert member.load == 10
        calls[2].cancel()  # perhaps in the iteration in which it was given its place
        await asyncio.gather(*calls, return_exceptions=True)
        assert workers.load() == 0 and await workers.call("work") == [0]

    in_own_time(story())


def test_waiting_calls_raise_when_no_replacement_can_start() -> None:
    async def story() -> None:
        workers, calls = await one_of_three_is_answered()

        def nowhere(number: int) -> GangSpec:
            raise RuntimeError("no place")

        workers.startup.spec = nowhere
        workers.members.replace(workers.members[0])
        for call in calls[1:]:
            with pytest.raises(RuntimeError, match="no place"):
                await call
        with pytest.raises(RuntimeError, match="no place"):
            await workers.call("work")
        calls[0].cancel()

    in_own_time(story())
