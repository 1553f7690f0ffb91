"""One timer for many deadlines: each is kept to the second, and what counts from later is waited for until then."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator.pools.deadlines import Overdue, Watch
from tests.unit.own_time import in_own_time


async def answer(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def test_each_wait_ends_with_its_answer_or_at_its_own_deadline() -> None:
    """Whatever the order of the deadlines: a later one that is set first does not hide an earlier one."""

    async def wait(watch: Watch, deadline: float, takes: float) -> tuple[str, float]:
        try:
            return "answered", await watch.within(deadline, answer(takes))
        except Overdue:
            return "overdue", time.monotonic()

    async def story() -> list[tuple[str, float]]:
        watch = Watch()
        waits = [(600.0, 700.0), (5.0, 9.0), (60.0, 50.0), (60.0, 61.0), (2.0, 1.0)]
        found = await asyncio.gather(*(wait(watch, *each) for each in waits))
        assert await wait(watch, 10.0, 20.0) == ("overdue", 610.0), "it still watches after all the others"
        return list(found)

    expected = [("overdue", 600.0), ("overdue", 5.0), ("answered", 50.0), ("overdue", 60.0), ("answered", 1.0)]
    assert in_own_time(story()) == expected


def test_a_deadline_counts_from_what_since_returns_at_the_time() -> None:
    async def story() -> float:
        def since() -> float | None:
            now = time.monotonic()
            return None if now < 10 else 6.0 if now < 16 else 12.0  # before 10 s nothing is owed

        with pytest.raises(Overdue):
            await Watch().within(10.0, answer(1000.0), since)
        return time.monotonic()

    assert in_own_time(story()) == 22.0


def test_a_cancelled_or_failed_wait_is_not_overdue_and_is_removed() -> None:
    async def late() -> None:
        await asyncio.sleep(1)
        raise TimeoutError("the member's own")

    async def story() -> None:
        watch = Watch()
        with pytest.raises(TimeoutError, match="own"):
            await watch.within(5.0, late())
        task = asyncio.create_task(watch.within(5.0, answer(100.0)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not watch._waits
        await asyncio.sleep(100)
        assert watch._timer is None, "and nothing is looked at any more"

    in_own_time(story())
