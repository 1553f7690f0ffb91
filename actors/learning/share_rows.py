"""What a learner trains on of the payloads it fetched: the rows of a step, and the scores of their segments joined.

A uid stands in a payload once, but in several payloads: with its segments, and with earlier attempts that were given
up. So the share says which to read a response from, and which its scores. What no table covers must carry no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from actors.wire.jobs import Share
from actors.wire.records import Sample, ScoreTable, Span, unpack_samples


def given_samples(share: Share, payloads: Sequence[pa.RecordBatch]) -> dict[str, Sample]:
    """The share's responses by uid, each from the payload that holds it whole, before any mask."""
    blocks = {place: {row.uid: row for row in unpack_samples(payloads[place])} for place in set(share.rows.values())}
    return {uid: replace(blocks[place][uid], start=0) for uid, place in share.rows.items()}


def without_aged(share: Share, given: Mapping[str, Sample]) -> dict[str, Sample]:
    """The same responses; tokens that are too old carry no loss."""
    return {uid: row if uid in share.foreign else _young(row, share.oldest) for uid, row in given.items()}


def samples_of(share: Share, payloads: Sequence[pa.RecordBatch]) -> dict[str, Sample]:
    """The share's responses by uid as they are trained on."""
    return without_aged(share, given_samples(share, payloads))


def tables_of(share: Share, payloads: Sequence[pa.RecordBatch]) -> dict[int, ScoreTable]:
    """The payloads that hold scores of the share's responses, by their place."""
    places = {place for models in share.scores.values() for tables in models.values() for place in tables}
    return {place: ScoreTable(payloads[place]) for place in places}


def _young(sample: Sample, oldest: int) -> Sample:
    """The response with loss left on tokens of version `oldest` or later."""
    carries = np.zeros(len(sample.response_ids), dtype=bool)
    for start, end in sample.loss_spans:
        carries[start:end] = True
    carries &= np.asarray(sample.versions) >= oldest
    return replace(sample, loss_spans=_spans(carries))


def _spans(carries: np.ndarray) -> list[Span]:
    """Half-open ranges of the tokens that are true."""
    edges = np.flatnonzero(np.diff(carries, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


@dataclass(frozen=True)
class JoinedScores:
    """Scores of a response's `tokens` tokens under one model, by the token that each table's row starts at."""

    model: str
    uid: str
    tokens: int
    tables: Mapping[int, ScoreTable]

    @classmethod
    def of(cls, model: str, sample: Sample, tables: Iterable[ScoreTable]) -> JoinedScores:
        """From those tables that hold scores of this very sample. Raises RuntimeError where a token that carries loss
        has no score."""
        by_start = {table.start(sample.uid): table for table in tables}
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
            joined[start * k : start * k + len(part)] = part
        return joined
