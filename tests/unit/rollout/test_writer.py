"""Rows of a channel leave in blocks, whichever call asked for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from actors.rollout.writer import Writer
from actors.wire.records import Request, Sample
from configs.roles.streaming import Stream
from configs.schema import Sampling
from tests.unit.own_time import in_own_time

Rows = list[tuple[str, int]]  # uid and start of each row of a block


class Scripted(Writer):
    """Writes the segments of each response at these seconds, and then raises `error` or goes on for ever."""

    def __init__(self, seconds: Mapping[str, Sequence[float]], error: Exception | None = None) -> None:
        super().__init__()
        self._seconds = seconds
        self._error = error
        self.writing: set[str] = set()

    async def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        self.writing.add(request.uid)
        try:
            passed = 0.0
            for start, when in enumerate(self._seconds[request.uid]):
                await asyncio.sleep(when - passed)
                passed, tokens = when, start + 1
                yield request.answered([5] * tokens, [-1.0] * tokens, "", [0] * tokens, start=start)
            if self._error:
                raise self._error
            await asyncio.Event().wait()
        finally:
            self.writing.remove(request.uid)

    async def ask(self, uids: str, channel: str = "") -> None:
        await self.submit(channel, [Request(uid, uid, 0, 1, [7]) for uid in uids], Sampling(max_response_tokens=8), ())


async def read(parts: AsyncIterator[Any]) -> Rows:
    await anext(parts)
    return [(sample.uid, sample.start) for sample in (await anext(parts)).samples]


def blocks(member: Scripted, calls: Sequence[str], stream: Stream, count: int) -> list[Rows]:
    async def work() -> list[Rows]:
        for uids in calls:
            await member.ask(uids)
        parts = member.blocks("", stream)
        return [await read(parts) for _ in range(count)]

    return in_own_time(work(), hours=0.1)


def test_a_response_stands_in_a_block_once_and_its_segments_stay_in_order() -> None:
    member = Scripted({"a": [0.1, 0.2, 0.4], "b": [0.1, 0.3]})
    expected = [[("a", 0), ("b", 0)], [("a", 1), ("b", 1)], [("a", 2)]]
    assert blocks(member, ["ab"], Stream(coalesce_ms=1000.0), 3) == expected


def test_a_block_holds_no_more_rows_than_the_recipe_says() -> None:
    member = Scripted({"a": [1.0], "b": [1.0], "c": [1.0]})
    assert blocks(member, ["abc"], Stream(coalesce_samples=2), 2) == [[("a", 0), ("b", 0)], [("c", 0)]]


def test_a_full_block_does_not_wait() -> None:
    member = Scripted({"a": [1.0], "b": [1.0]})
    stream = Stream(coalesce_ms=1e9, coalesce_samples=2)
    assert blocks(member, ["ab"], stream, 1) == [[("a", 0), ("b", 0)]]


@pytest.mark.parametrize(("window", "rows"), [(0.0, 1), (400.0, 2)])
def test_rows_of_several_calls_within_the_window_leave_together(window: float, rows: int) -> None:
    member = Scripted({"a": [0.1], "b": [0.4], "c": [0.6]})
    (block,) = blocks(member, ["a", "bc"], Stream(coalesce_ms=window), 1)
    assert block == [("a", 0), ("b", 0)][:rows]


def test_channels_do_not_mix() -> None:
    async def work() -> list[Rows]:
        member = Scripted({"a": [1.0], "b": [1.0]})
        await member.ask("a", "one")
        await member.ask("b", "two")
        return [await read(member.blocks(name, Stream())) for name in ("one", "two")]

    assert in_own_time(work()) == [[("a", 0)], [("b", 0)]]


@pytest.mark.parametrize("seconds", [[], [0.1]], ids=["before a row", "while a block waits"])
def test_an_error_of_a_request_ends_the_stream(seconds: list[float]) -> None:
    member = Scripted({"a": seconds, "b": []}, RuntimeError("engine is dead"))
    with pytest.raises(RuntimeError, match="engine is dead"):
        blocks(member, ["ab"], Stream(coalesce_ms=1e9), 1)


def test_to_close_a_channel_ends_its_work_and_no_other() -> None:
    async def work() -> set[str]:
        member = Scripted({"a": [1.0], "b": [1.0], "c": [9.0]})
        await member.ask("ac", "one")
        await member.ask("b", "two")
        parts = member.blocks("one", Stream())
        await read(parts)
        await parts.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.0)
        return set(member.writing)

    assert in_own_time(work()) == {"b"}
