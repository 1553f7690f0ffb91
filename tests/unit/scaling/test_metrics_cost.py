"""What the benchmark of metrics makes of its runs, and that it counts a task's own CPU and no other."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from benchmarks.metrics.accounts import Accounts, Timed
from benchmarks.metrics.report import cost, table


def run(reported: bool, driver: float, page: float = 0.0, **parts: float) -> dict[str, Any]:
    """CPU seconds of 10 s of a driver that trains 1,000 samples a second."""
    spent = {"loop": 0.0, "trackers": 0.0, "files": 0.0, "native": 0.0, **parts, "driver": driver, "wall": 10.0}
    return {
        "reported": reported,
        "cpu_seconds": spent,
        "samples_per_second": 1000.0,
        "driver_cpu_ms_per_sample": driver / 10.0,
        "page": {"cpu_seconds": page, "wall": 20.0, "rounds": 10} if reported else None,
    }


def test_the_cost_is_of_the_drivers_cpu_and_threads_that_are_there_anyway_cost_nothing() -> None:
    first, second = run(False, 4.0, native=0.4), run(False, 4.0, native=0.4)
    with_metrics = run(True, 5.0, page=0.1, loop=0.05, trackers=0.025, native=0.55)
    found = cost([first, with_metrics, second, with_metrics])
    expected = {"loop": 0.01, "trackers": 0.005, "files": 0.0, "native": 0.01, "page": 0.01}
    assert found["shares"] == pytest.approx(expected)
    assert found["share"] == pytest.approx(0.035) and found["difference"] == pytest.approx(0.25)
    assert "| all | 3.50% |" in table(found)


def test_a_task_is_charged_with_its_own_turns_and_not_with_those_of_others() -> None:
    accounts = Accounts()

    def burn(seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    async def told() -> str:
        burn(0.02)
        await asyncio.sleep(0.0)
        burn(0.02)
        return "told"

    async def other() -> None:
        burn(0.2)

    async def both() -> str:
        async def timed() -> str:
            return await Timed(told(), accounts)

        answer, _ = await asyncio.gather(timed(), other())
        return answer

    assert asyncio.run(both()) == "told"
    assert 0.04 <= accounts.loop < 0.1


def test_a_timed_task_is_cancelled_within() -> None:
    seen: list[str] = []

    async def told() -> None:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def timed() -> None:
        await Timed(told(), Accounts())

    async def cancel() -> None:
        task = asyncio.create_task(timed())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancel())
    assert seen == ["cancelled"]
