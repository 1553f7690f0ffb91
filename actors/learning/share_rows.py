"""Reads a step's responses, and their joined scores, from the payloads that a learner fetched.

A uid stands in a payload once, but may stand in several payloads: as segments, and as abandoned attempts. So the share
names the payloads of each response and of its scores. A token without a score must carry no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from actors.wire.jobs import Share
from actors.wire.kept_scores import ARRAYS, Kept
from actors.wire.records import Sample, Score, ScoreTable, Span, unpack_samples


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

    def kept(self) -> Kept | None:
        """All of it as one row, 0 where there is no score. None of hidden states under several LM heads."""
        tables = list(self.tables.values())
        versions = {table.version(self.uid) for table in tables}
        hidden = self._hidden() if self.has("hidden") else None
        if hidden is not None and len(versions) > 1:
            return None
        arrays: dict[str, Any] = {name: self.values(name) for name in ARRAYS if self.has(name)}
        score = Score(self.uid, self.values("logprobs"), hidden=hidden, version=max(versions), **arrays)
        return Kept(self.model, score, None if hidden is None else tables[0].hidden_dtype)

    def _hidden(self) -> bytes:
        """Bytes of [tokens, width] hidden states."""
        parts = [(s, t.hidden(self.uid), len(t.values(self.uid, "logprobs"))) for s, t in self.tables.items()]
        width = len(parts[0][1]) // parts[0][2]  # bytes of a token
        joined = bytearray(self.tokens * width)
        for start, part, _ in parts:
            joined[start * width : start * width + len(part)] = part
        return bytes(joined)
