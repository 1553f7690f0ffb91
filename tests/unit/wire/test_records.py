"""The wire: what is packed comes back, headers say what is inside, and a token costs what the contract allows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.wire.records import (
    SAMPLES,
    Sample,
    Score,
    ScoreTable,
    header_of,
    log_ratio_of,
    pack_samples,
    pack_scores,
    unpack_samples,
)
from actors.wire.trained import LIKELIEST, TRAINED, trained_batch

RESPONSES, TOKENS = 16, 100


def sample(uid: str = "00000000.000", tokens: int = 3, **changes: Any) -> Sample:
    whole = Sample(
        uid=uid, group=uid.split(".")[0], attempt=1, seed=2**62 + 1, prompt_ids=[7, 8],
        response_ids=list(range(tokens)), rollout_logprobs=[-0.5] * tokens, loss_spans=[(0, tokens)],
        finish="stop", versions=[4] * tokens,
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def score(uid: str, tokens: int, k: int = 0, seed: int = 0) -> Score:
    rng = np.random.default_rng(seed)
    support: dict[str, Any] = {}
    if k:
        support["support_ids"] = rng.integers(0, 50_000, (tokens, k), dtype=np.int32)
        support["support_logprobs"] = -rng.random((tokens, k)).astype(np.float16)
        support["tail_logprob"] = -rng.random(tokens).astype(np.float32)
    return Score(uid, -rng.random(tokens).astype(np.float32), version=seed, **support)


def uids(count: int) -> list[str]:
    return [f"{i:08d}.000" for i in range(count)]


def test_samples_come_back_as_they_were_sent() -> None:
    sent = [sample("a.0", 3), sample("a.1", 0), sample("b.0", 5, loss_spans=[(1, 2), (4, 5)], finish="length")]
    payload, header = pack_samples(sent)
    assert payload.schema == SAMPLES and header.payload_bytes == payload.nbytes
    for before, after in zip(sent, unpack_samples(payload), strict=True):
        spans = {name: [tuple(span) for span in getattr(after, name)] for name in ("loss_spans",)}
        assert dataclasses.replace(after, **spans) == before


def test_no_samples_are_an_empty_payload() -> None:
    payload, header = pack_samples([])
    assert (payload.num_rows, header.samples, unpack_samples(payload)) == (0, (), [])


def test_columns_are_those_of_the_contract() -> None:
    names = (
        "uid group attempt seed prompt_ids response_ids rollout_logprobs loss_spans finish versions support_ids start"
    )
    assert names.split() == SAMPLES.names


def test_a_header_counts_loss_tokens_and_their_versions_only() -> None:
    header = header_of(sample(tokens=5, loss_spans=[(1, 3), (4, 5)], versions=[0, 5, 4, 0, 3]))
    assert (header.prompt_tokens, header.response_tokens, header.loss_tokens) == (2, 5, 3)
    assert header.versions == ((3, 1), (4, 1), (5, 1)), "ascending, whatever came first"
    assert header.version_min == 3


def test_a_sample_without_loss_tokens_has_a_header_that_says_so() -> None:
    header = header_of(sample(tokens=2, loss_spans=[]))
    assert (header.loss_tokens, header.version_min, header.versions) == (0, 0, ())


def test_the_headers_of_a_responses_segments_add_up() -> None:
    spans, versions = [(1, 3), (4, 7)], [2, 2, 3, 3, 3, 5, 5]
    whole = header_of(sample(tokens=7, loss_spans=spans, versions=versions))
    rows = [
        sample(tokens=len(held), start=start, versions=held, finish=finish, loss_spans=inside)
        for start, held, finish, inside in (
            (0, versions[:4], "", [(1, 3)]),
            (4, versions[4:6], "", [(1, 3), (4, 6)]),
            (6, versions, "stop", spans),
        )
    ]
    first, second, third = segments = [header_of(row) for row in rows]
    assert [(h.start, h.end, h.response_tokens, h.loss_tokens) for h in segments] == [
        (0, 4, 4, 2),
        (4, 6, 2, 2),
        (6, 7, 1, 1),
    ]
    assert (first.versions, second.versions, third.versions) == (((2, 1), (3, 1)), ((3, 1), (5, 1)), ((5, 1),))
    assert [h.last for h in segments] == [False, False, True] and whole.last
    assert sum((Counter(dict(h.versions)) for h in segments), Counter[int]()) == dict(whole.versions)
    assert min(h.version_min for h in segments) == whole.version_min == 2
    assert whole.versions == ((2, 1), (3, 2), (5, 2)) and third.end == whole.end


def test_headers_follow_the_order_of_rows() -> None:
    payload, header = pack_samples([sample("b.0"), sample("a.0")])
    assert [h.uid for h in header.samples] == payload.column("uid").to_pylist() == ["b.0", "a.0"]


def test_scores_come_back_by_uid_row_major() -> None:
    sent = [score("a.0", 3, k=2, seed=1), dataclasses.replace(score("a.1", 5, k=2, seed=2), start=16)]
    payload, header = pack_scores(sent, {"a.2": "too long"})
    assert (header.uids, header.rejected, header.tokens, header.scorer_version) == (
        ("a.0", "a.1"),
        {"a.2": "too long"},
        8,
        2,
    ), "the newest version is the header's"
    assert header.payload_bytes == payload.nbytes
    table = ScoreTable(payload)
    assert "a.1" in table and "a.2" not in table
    for row in sent:
        assert (table.values(row.uid, "logprobs") == row.logprobs).all()
        assert (table.version(row.uid), table.start(row.uid)) == (row.version, row.start)
        assert (table.values(row.uid, "support_ids").reshape(-1, 2) == row.support_ids).all()
        assert (table.values(row.uid, "support_logprobs").reshape(-1, 2) == row.support_logprobs).all()
        assert (table.values(row.uid, "tail_logprob") == row.tail_logprob).all()


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({}, []),
        ({"entropy_sum": 3.0}, []),
        ({"hidden": b"123456"}, ["hidden"]),
    ],
)
def test_a_payload_has_only_the_columns_of_its_support(changes: dict[str, Any], columns: list[str]) -> None:
    payload, _ = pack_scores([dataclasses.replace(score("a.0", 3), **changes)], {}, "bfloat16")
    assert payload.schema.names == ["uid", "scorer_version", "start", "logprobs", *columns]
    table = ScoreTable(payload)
    assert not table.has("support_ids") and table.hidden_dtype == "bfloat16"
    if "hidden" in changes:
        assert table.hidden("a.0") == b"123456"


def test_a_block_of_which_nothing_could_be_scored_still_has_a_payload() -> None:
    payload, header = pack_scores([], {"a.0": "empty response"})
    assert (payload.num_rows, header.uids, header.tokens) == (0, (), 0)
    assert "a.0" not in ScoreTable(payload) and ScoreTable(payload).hidden_dtype is None


def test_logprobs_travel_as_f32_or_f16() -> None:
    payload, _ = pack_scores([score("a.0", 3, k=2)], {})
    kinds = {f.name: f.type.value_type for f in payload.schema if "logprob" in f.name}
    kinds["rollout_logprobs"] = SAMPLES.field("rollout_logprobs").type.value_type
    assert set(kinds.values()) <= {pa.float16(), pa.float32()} and len(kinds) == 4


@pytest.mark.parametrize("rows", [1, RESPONSES])
def test_sampled_scores_cost_at_most_4_bytes_a_token_and_64_a_response_or_segment(rows: int) -> None:
    payload, _ = pack_scores([score(uid, TOKENS) for uid in uids(rows)], {})
    assert _on_the_wire(payload) <= rows * (TOKENS * 4 + 64)


@pytest.mark.parametrize("rows", [1, RESPONSES])
@pytest.mark.parametrize("k", [1, 8, 32])
def test_topk_scores_cost_at_most_6k_plus_8_bytes_a_token_and_64_a_response_or_segment(k: int, rows: int) -> None:
    payload, _ = pack_scores([score(uid, TOKENS, k) for uid in uids(rows)], {})
    assert _on_the_wire(payload) <= rows * (TOKENS * (6 * k + 8) + 64)


def test_trained_samples_keep_every_column_and_null_what_is_unknown() -> None:
    sent = [sample("a.0", 2), sample("a.1", 1)]
    student = [np.full(len(s.response_ids), -2.0, np.float32) for s in sent]
    batch = trained_batch(sent, [0.5, None], student, [np.array([-1.0, -3.0]), None])
    assert batch.schema == TRAINED
    rows = batch.to_pylist()
    assert [row["reward"] for row in rows] == [0.5, None]
    assert [row["teacher_logprobs"] for row in rows] == [[-1.0, -3.0], None]
    assert [row["student_logprobs"] for row in rows] == [[-2.0, -2.0], [-2.0]]
    assert unpack_samples(batch) == unpack_samples(pack_samples(sent)[0])


def test_trained_samples_say_what_the_teacher_finds_likeliest_where_it_is_known() -> None:
    sent = [sample("a.0", 2), sample("a.1", 1)]
    known = (np.arange(2 * LIKELIEST, dtype=np.int32).reshape(2, -1), np.full((2, LIKELIEST), -0.5, np.float16))
    rows = trained_batch(sent, [None] * 2, [np.zeros(2), np.zeros(1)], [None] * 2, likeliest=[known]).to_pylist()
    assert [row["likeliest_ids"] for row in rows] == [[*range(2 * LIKELIEST)], None]
    assert [row["likeliest_logprobs"] for row in rows] == [[-0.5] * 2 * LIKELIEST, None]


def _on_the_wire(payload: pa.RecordBatch) -> int:
    """Bytes of all buffers, validity bitmaps included: nothing may hide from nbytes."""
    return max(payload.nbytes, payload.get_total_buffer_size())


@pytest.mark.parametrize(("of_score", "of_header"), [("entropy_sum", "entropies"), ("log_ratio", "log_ratios")])
def test_sums_travel_in_the_header_where_every_score_has_one(of_score: str, of_header: str) -> None:
    known = dataclasses.replace(score("a.0", 3), **{of_score: 1.5})
    assert getattr(pack_scores([known], {})[1], of_header) == (1.5,)
    assert getattr(pack_scores([known, score("a.1", 3)], {})[1], of_header) is None


def test_a_log_ratio_is_to_the_sampler_and_of_the_new_tokens() -> None:
    row = sample(tokens=4, start=2, rollout_logprobs=[-9.0, -9.0, -0.5, -1.0])
    assert log_ratio_of(np.array([-1.0, -2.0], np.float32), row) == -1.5
    assert np.isnan(log_ratio_of(np.zeros(2), sample(tokens=2, rollout_logprobs=[float("nan")] * 2)))
