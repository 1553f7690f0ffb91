"""The rows of a response while vLLM samples it, however it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from actors.rollout.response import Response
from actors.wire.records import Request, Sample, header_of

REQUEST = Request("a", "a", 0, 1, [7, 8], topk=2)


@dataclass
class Flat:
    """vLLM's FlatLogprobs of n tokens with two ranks each: the sampled one first, then the top two."""

    tokens: int
    start_indices: list[int] = field(init=False)
    end_indices: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.start_indices = [3 * t for t in range(self.tokens)]
        self.end_indices = [3 * t + 3 for t in range(self.tokens)]
        self.logprobs = [x for t in range(self.tokens) for x in (-3.0 - t, -1.0, -2.0)]
        self.token_ids = [x for t in range(self.tokens) for x in (t, 100 + t, 200 + t)]
        self.ranks = [9, 1, 2] * self.tokens


@dataclass
class Span:
    version: str
    start: int
    end: int


@dataclass
class Completion:
    token_ids: list[int]
    weight_versions: list[Span] | None = None

    @property
    def logprobs(self) -> Flat:
        return Flat(len(self.token_ids))


def grown(response: Response, tokens: int, version: int = 0, spans: list[Span] | None = None) -> Response:
    response.grow(Completion(list(range(tokens)), spans), version)
    return response


def stepped(outputs: Sequence[tuple[int, str]], segment: int) -> list[Sample]:
    """Rows of a response of which vLLM shows so many tokens at a time, and why it ended."""
    response = Response(REQUEST)
    return [row for tokens, finish in outputs for row in grown(response, tokens).rows(segment, finish)]


@pytest.mark.parametrize(
    ("outputs", "pieces"),
    [
        ([(t, "") for t in range(1, 7)] + [(7, "stop")], [(0, 3, ""), (3, 6, ""), (6, 7, "stop")]),
        ([(t, "") for t in range(1, 6)] + [(6, "length")], [(0, 3, ""), (3, 6, "length")]),
        ([(7, ""), (8, "stop")], [(0, 3, ""), (3, 6, ""), (6, 8, "stop")]),  # the reader fell behind
        ([(10, "stop")], [(0, 3, ""), (3, 6, ""), (6, 9, ""), (9, 10, "stop")]),
        ([(2, ""), (2, "cut")], [(0, 2, "cut")]),
        ([(3, ""), (3, "cut")], [(0, 3, "cut")]),  # a segment waits for the token behind it, to carry the end
        ([(4, ""), (4, "abort")], [(0, 3, ""), (3, 4, "abort")]),
    ],
)
def test_segments_have_their_size_and_the_last_is_never_empty(
    outputs: list[tuple[int, str]], pieces: list[tuple[int, int, str]]
) -> None:
    rows = stepped(outputs, 3)
    assert [(row.start, header_of(row).end, row.finish) for row in rows] == pieces
    assert all(header_of(row).response_tokens for row in rows)


def test_a_row_holds_new_tokens_and_the_last_row_all() -> None:
    first, second, last = stepped([(4, ""), (7, ""), (8, "stop")], 3)
    assert [r.response_ids for r in (first, second, last)] == [[0, 1, 2], [3, 4, 5], list(range(8))]
    assert second.rollout_logprobs == [-6.0, -7.0, -8.0] and last.rollout_logprobs[3:6] == second.rollout_logprobs
    assert second.support_ids == [x for t in (3, 4, 5) for x in (100 + t, 200 + t)] and len(last.support_ids) == 16
    assert second.loss_spans == [(0, 6)] and last.loss_spans == [(0, 8)], "positions in the response"
    assert len(second.versions) == 3 and len(last.versions) == 8


def test_without_segments_a_response_leaves_whole() -> None:
    assert [(r.start, len(r.response_ids)) for r in stepped([(4, ""), (9, "stop")], 0)] == [(0, 9)]


def test_versions_are_the_current_one_until_the_engine_reports_them() -> None:
    response = grown(grown(Response(REQUEST), 2, version=4), 4, version=5)
    (segment,) = response.rows(3, "")
    assert segment.versions == [4, 4, 5]
    (last,) = grown(response, 5, 5, [Span("4", 0, 3), Span("5", 3, 5)]).rows(3, "stop")
    assert last.versions == [4, 4, 4, 5, 5]
