"""What a learner trains on of responses that came in segments: the rows and tokens of a step, and their scores joined.

A row holds the response so far, so the one with the most tokens holds all of them. Scores stand in a table a segment;
what no table covers must carry no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from actors.jobs import Share
from actors.records import Sample, ScoreTable, Span


def samples_of(share: Share, rows: Iterable[Sample]) -> dict[str, Sample]:
    """The share's responses by uid, each from its longest row and cut to the tokens of this step."""
    mine = {uid for uids in share.micro_batches for uid in uids}
    longest: dict[str, Sample] = {}
    for row in rows:
        held = longest.get(row.uid)
        if row.uid in mine and (held is None or len(row.response_ids) > len(held.response_ids)):
            longest[row.uid] = row
    ages = {uid: 0 if uid in share.foreign else share.oldest for uid in longest}
    return {uid: in_window(row, share.windows.get(uid), ages[uid]) for uid, row in longest.items()}


def in_window(sample: Sample, window: Span | None, oldest: int) -> Sample:
    """The response up to the window's end; loss is left on the window's tokens of version `oldest` or later."""
    start, end = window or (0, len(sample.response_ids))
    carries = np.zeros(end, dtype=bool)
    for a, b in sample.loss_spans:
        carries[max(a, start) : b] = True
    carries &= np.asarray(sample.versions[:end]) >= oldest
    k = len(sample.support_ids) // max(1, len(sample.response_ids))
    return replace(
        sample,
        response_ids=sample.response_ids[:end],
        rollout_logprobs=sample.rollout_logprobs[:end],
        versions=sample.versions[:end],
        support_ids=sample.support_ids[: k * end],
        turns=[(a, min(b, end)) for a, b in sample.turns if a < end],
        loss_spans=_spans(carries),
        start=start,
    )


def _spans(carries: np.ndarray) -> list[Span]:
    """Half-open ranges of the tokens that are true."""
    edges = np.flatnonzero(np.diff(carries, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


@dataclass(frozen=True)
class JoinedScores:
    """Scores of a response's first `tokens` tokens under one model, by the token that each table's row starts at."""

    model: str
    uid: str
    tokens: int
    tables: Mapping[int, ScoreTable]

    @classmethod
    def of(cls, model: str, sample: Sample, tables: Iterable[ScoreTable]) -> JoinedScores:
        """Raises RuntimeError where a token that carries loss has no score."""
        by_start = {table.start(sample.uid): table for table in tables if sample.uid in table}
        joined = cls(model, sample.uid, len(sample.response_ids), dict(sorted(by_start.items())))
        for start, end in sample.loss_spans:
            if not joined.covered[start:end].all():
                raise RuntimeError(
                    f"{sample.uid}: tokens {start} to {end} carry loss and {model} has not scored all of them; pass "
                    "the scores of every segment"
                )
        return joined

    @property
    def covered(self) -> np.ndarray:
        """[tokens] bool: which have scores."""
        covered = np.zeros(self.tokens, dtype=bool)
        for start, table in self.tables.items():
            covered[start : start + len(table.values(self.uid, "logprobs"))] = True
        return covered

    def has(self, column: str) -> bool:
        return all(table.has(column) for table in self.tables.values())

    def values(self, column: str, unknown: float = 0) -> np.ndarray:
        """A column of k values a token, flat: [tokens * k]; `unknown` where no table has a score."""
        parts = [(start, table.values(self.uid, column)) for start, table in self.tables.items()]
        start, first = parts[0]
        k = len(first) // len(self.tables[start].values(self.uid, "logprobs"))
        joined = np.full(self.tokens * k, unknown, first.dtype)
        for start, part in parts:
            room = joined[start * k : start * k + len(part)]
            room[:] = part[: len(room)]
        return joined
