"""Simulated members hand responses on in segments, end them when told, and score what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.rollout.dataset import Dataset
from actors.simulated.decoding import Decoding, Piece
from actors.simulated.known import Speeds
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.records import Request, Sample, ScoreRequest, ScoreTable, header_of, pack_samples, unpack_samples
from configs.reward_rules import LengthRule
from configs.roles.streaming import Stream
from configs.schema import Sampling
from tests.unit.own_time import in_own_time
from tests.written import written

SAMPLING = Sampling(max_response_tokens=16)
REQUESTS = [Request(f"{i:08d}.000", f"{i:08d}", 0, 100 + i, [1, 2]) for i in range(12)]
END = (1,)


# --- the state machine ---


def drained(machine: Decoding) -> list[tuple[int, int, str | None]]:
    pieces = []
    while machine.open:
        machine.pass_until(machine.due, 0)
        pieces.append(machine.take())
    return [(piece.start, piece.end, piece.finish) for piece in pieces]


def test_a_response_without_segments_is_one_piece() -> None:
    assert drained(Decoding(3, segment=0)) == [(0, 3, None)]


def test_segments_cover_a_response_once_and_the_last_carries_the_end() -> None:
    assert drained(Decoding(3, segment=4)) == [(0, 3, None)]
    assert drained(Decoding(4, segment=4)) == [(0, 4, None)], "the end at a multiple is no empty segment"
    assert drained(Decoding(9, segment=4)) == [(0, 4, ""), (4, 8, ""), (8, 9, None)]


def test_a_response_that_is_ended_leaves_with_the_tokens_it_has() -> None:
    machine = Decoding(9, segment=4)
    machine.pass_until(2, 0)
    machine.end("cut")
    machine.end("abort")
    assert machine.due == 2 and machine.take() == Piece(0, 2, "cut") and not machine.open


@pytest.mark.parametrize(("length", "finish"), [(4, None), (9, "abort")])
def test_a_response_ended_at_a_segments_end_takes_one_more_token(length: int, finish: str | None) -> None:
    machine = Decoding(length, segment=3)
    machine.pass_until(3, 0)
    machine.take()
    machine.end("abort")
    assert machine.due == 4 and machine.take() == Piece(3, 4, finish) and not machine.open


# --- the members ---


def rollout(seconds: float = 0.0, on_update: str = "keep") -> SimulatedRollout:
    return SimulatedRollout(Speeds(rollout=seconds), on_update)


def generated(
    member: Any,
    stream: Stream,
    between: Callable[[Any, Sequence[Sample]], Any] | None = None,
    requests: Sequence[Request] = REQUESTS,
) -> list[list[Sample]]:
    """Blocks of these requests; `between` is awaited after each with the member and the rows so far."""

    async def work() -> list[list[Sample]]:
        blocks: list[list[Sample]] = []
        async for payload, _ in written(member, requests, SAMPLING, stream, END):
            blocks.append(unpack_samples(payload))
            if between:
                await between(member, [s for block in blocks for s in block])
        return blocks

    return in_own_time(work())


def segmented(tokens: int) -> list[Request]:
    return [replace(request, segment_tokens=tokens) for request in REQUESTS]


def by_uid(blocks: list[list[Sample]]) -> dict[str, list[Sample]]:
    rows = [row for block in blocks for row in block]
    return {uid: [row for row in rows if row.uid == uid] for uid in sorted({row.uid for row in rows})}


@pytest.mark.parametrize("tokens", [1, 4, 5, 16, 100])
@pytest.mark.parametrize("block", [1, 3, 64])
def test_segments_are_what_is_new_and_end_with_the_whole_one(tokens: int, block: int) -> None:
    whole = {row.uid: row for row in generated(rollout(), Stream())[0]}
    blocks = generated(rollout(), Stream(coalesce_samples=block), requests=segmented(tokens))
    assert all(len({row.uid for row in b}) == len(b) <= block for b in blocks)
    segments = by_uid(blocks)
    assert segments.keys() == whole.keys()
    for uid, rows in segments.items():
        headers = [header_of(row) for row in rows]
        assert [h.start for h in headers] == [0, *(h.end for h in headers[:-1])]
        assert all(h.response_tokens == tokens and not h.last for h in headers[:-1])
        assert 1 <= headers[-1].response_tokens <= tokens and headers[-1].last
        last = rows[-1]
        assert (last.response_ids, last.finish) == (whole[uid].response_ids, whole[uid].finish)
        for row in rows:
            assert row.response_ids == last.response_ids[row.offset : header_of(row).end]
            assert len(row.rollout_logprobs) == len(row.versions) == len(row.response_ids)


def test_a_cut_response_ends_with_its_next_block_and_the_others_go_on() -> None:
    cut = []

    async def between(member: SimulatedRollout, rows: Sequence[Sample]) -> None:
        if not cut:
            cut.extend(row.uid for row in rows[:6] if not row.finish)
            await member.cut(cut)

    plain, segments = (
        by_uid(generated(rollout(), Stream(), requests=segmented(4))),
        by_uid(generated(rollout(0.1), Stream(), between, requests=segmented(4))),
    )
    assert cut
    for uid, rows in segments.items():
        if uid not in cut:
            assert rows == plain[uid]
            continue
        first, last = rows
        assert (first.finish, last.start, len(last.response_ids)) == ("", 4, 5)
        whole = plain[uid][-1]
        assert last.finish == ("cut" if len(whole.response_ids) > 5 else whole.finish)


@pytest.mark.parametrize("on_update", ["keep", "abort"])
def test_a_weight_update_meets_running_responses_as_the_recipe_says(on_update: str) -> None:
    """The update comes two ticks after the first segments."""
    loaded = False

    async def between(member: SimulatedRollout, rows: Sequence[Sample]) -> None:
        nonlocal loaded
        if not loaded and any(not row.finish for row in rows):
            loaded = True
            await asyncio.sleep(0.2)
            await member.load(7, ())

    segments = by_uid(generated(rollout(0.1, on_update), Stream(), between, requests=segmented(4)))
    whole = {row.uid: row for row in generated(rollout(), Stream())[0]}
    running = {uid: rows for uid, rows in segments.items() if len(whole[uid].response_ids) > 8}
    assert running
    for rows in running.values():
        last = rows[-1]
        if on_update == "abort":
            assert last.finish == "abort" and set(last.versions) == {0} and last.start == 4
            assert 5 <= len(last.response_ids) <= 8
        else:
            assert last.finish in ("stop", "length")
            assert last.versions == sorted(last.versions) and last.versions[:4] == [0] * 4
    if on_update == "keep":
        assert any(set(rows[-1].versions) == {0, 7} for rows in running.values())


def test_a_dataset_yields_whole_responses_and_cuts_none() -> None:
    request = Request("a", "a", 0, 1, [1], response_ids=[5, 6, 7], segment_tokens=2)
    member = Dataset()
    member.cut(["a"])
    ((row,),) = generated(member, Stream(), requests=[request])
    assert (row.start, len(row.response_ids), row.finish) == (0, 3, "data")


@pytest.mark.parametrize("support", ["sampled", "topk", "full"])
def test_a_simulated_scorer_scores_what_is_new(support: str) -> None:
    request = REQUESTS[0]
    scorer = SimulatedScorer(Speeds(), 1000)

    def scored(row: Sample) -> tuple[ScoreTable, Any]:
        payload, header = asyncio.run(scorer.score(pack_samples([row])[0], ScoreRequest(support, topk=2)))
        return ScoreTable(payload), header

    def row(start: int, end: int) -> Sample:
        return request.answered(list(range(3, 3 + end)), [-1.0] * end, "", [0] * end, start=start)

    whole, all_of_it = scored(row(0, 7))
    table, header = scored(row(4, 7))
    assert (table.start(request.uid), header.tokens, all_of_it.tokens) == (4, 3, 7)
    for column in ("logprobs", *(("support_ids",) if support == "topk" else ())):
        k = 2 if column == "support_ids" else 1
        np.testing.assert_array_equal(table.values(request.uid, column), whole.values(request.uid, column)[4 * k :])
    assert header.log_ratios == pytest.approx((float(table.values(request.uid, "logprobs").sum()) + 3,))
    assert scored(row(7, 7))[1].rejected == {request.uid: "empty response"}


def test_rewards_are_of_the_uids_that_are_asked_for() -> None:
    payload: pa.RecordBatch = pack_samples(
        [REQUESTS[i].answered([5, 6, 7], [-1.0] * 3, finish, [0] * 3) for i, finish in enumerate(("stop", ""))]
    )[0]
    asked = {REQUESTS[0].uid: {}}
    assert SimulatedReward().reward(payload, [LengthRule()], asked).values.keys() == asked.keys()
