"""Reads a step's responses, and their joined scores, from the payloads that a learner fetched.

A uid stands in a payload once, but may stand in several payloads: as segments, and as abandoned attempts. So the share
names the payloads of each response and of its scores. A token without a score must carry no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from actors.wire.jobs import Share
from actors.wire.records import Sample, ScoreTable, Span, unpack_samples


def given_samples(share: Share, payloads: Sequence[pa.RecordBatch]) -> dict[str, Sample]:
    """The share's responses by uid, each from the payload that holds it whole, before any masking."""
    blocks = {place: {row.uid: row for row in unpack_samples(payloads[place])} for place in set(share.rows.values())}
    return {uid: replace(blocks[place][uid], start=0) for uid, place in share.rows.items()}


def without_aged(share: Share, given: Mapping[str, Sample]) -> dict[str, Sample]:
    """The same responses, without loss on tokens that are too old."""
    return {uid: row if uid in share.foreign else _young(row, share.oldest) for uid, row in given.items()}


def samples_of(share: Share, payloads: Sequence[pa.RecordBatch]) -> dict[str, Sample]:
    """The share's responses by uid as they are trained on."""
    return without_aged(share, given_samples(share, payloads))


def tables_of(share: Share, payloads: Sequence[pa.RecordBatch]) -> dict[int, ScoreTable]:
    """The payloads that hold scores of the share's responses, by their place."""
    places = {place for models in share.scores.values() for tables in models.values() for place in tables}
    return {place: ScoreTable(payloads[place]) for place in places}


def _young(sample: Sample, oldest: int) -> Sample:
    """The response with loss only on tokens of version `oldest` or later."""
    carries = np.zeros(len(sample.response_ids), dtype=bool)
    for start, end in sample.loss_spans:
        carries[start:end] = True
    carries &= np.asarray(sample.versions) >= oldest
    return replace(sample, loss_spans=_spans(carries))


def _spans(carries: np.ndarray) -> list[Span]:
    """Half-open ranges of true tokens."""
    edges = np.flatnonzero(np.diff(carries, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


@dataclass(frozen=True)
class JoinedScores:
    """Scores of a response of `tokens` tokens under one model. `tables` by the first token that each scores."""

    model: str
    uid: str
    tokens: int
    tables: Mapping[int, ScoreTable]

    @classmethod
    def of(cls, model: str, sample: Sample, tables: Iterable[ScoreTable]) -> JoinedScores:
        """Join the tables, each of which scores this sample. Raises RuntimeError if a token with loss has no score."""
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
        """[tokens] bool: whether a token has a score."""
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
