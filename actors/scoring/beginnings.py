"""Beginnings of responses that arrive in segments: what a scorer remembers of each.

A segment's row holds its new tokens alone, and the last row all of a response: no token travels more than twice. What a
scorer does not remember, since it has just begun or had too many, it is told again.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from actors.wire.records import Sample, by_response

TOKENS = 2**24  # 64 MiB: two thousand responses of eight thousand tokens


@dataclass
class Beginnings:
    """Token ids of responses that go on, by the channel they come in, uid and attempt; `tokens` of them at most: those
    that were added to longest ago are forgotten first. Attempts are counted anew when a learner is built anew, and then
    they come in other channels."""

    tokens: int = TOKENS
    _held: int = 0
    _ids: OrderedDict[tuple[str, str, int], array[int]] = field(default_factory=OrderedDict)

    def complete(
        self, channel: str, samples: Iterable[Sample], earlier: Sequence[pa.RecordBatch] = ()
    ) -> tuple[dict[str, list[int]], tuple[str, ...]]:
        """The ids of each response so far, by uid, and the uids of those whose beginning is not known: neither from
        before nor from `earlier` payloads. Raises RuntimeError where there are such and it was told of earlier ones."""
        told = by_response(earlier)
        found = {s.uid: self._so_far(channel, s, told.get((s.uid, s.attempt), ())) for s in samples}
        unknown = tuple(uid for uid, ids in found.items() if ids is None)
        if unknown and earlier:
            raise RuntimeError(f"the segments before it are missing of {unknown[0]}, and of {len(unknown) - 1} others")
        return {uid: ids for uid, ids in found.items() if ids is not None}, unknown

    def _so_far(self, channel: str, sample: Sample, earlier: Sequence[Sample]) -> list[int] | None:
        key = channel, sample.uid, sample.attempt
        known = self._ids.get(key, array("i"))
        if len(known) < sample.offset:
            known = _joined(earlier)
        if len(known) < sample.offset:
            return None
        ids = known[: sample.offset] + array("i", sample.response_ids)
        if sample.finish:
            self._forget(key)
        elif len(ids) > len(known):  # segments may be asked about in any order
            self._keep(key, ids)
        return ids.tolist()

    def _keep(self, key: tuple[str, str, int], ids: array[int]) -> None:
        self._forget(key)
        self._ids[key] = ids
        self._held += len(ids)
        while self._held > self.tokens:
            self._forget(next(iter(self._ids)))

    def _forget(self, key: tuple[str, str, int]) -> None:
        self._held -= len(self._ids.pop(key, ()))

    def __len__(self) -> int:
        """Responses that are remembered."""
        return len(self._ids)


def _joined(segments: Sequence[Sample]) -> array[int]:
    """The ids of a response's first segments, as far as none is missing."""
    ids = array("i")
    for segment in sorted(segments, key=lambda segment: segment.start):
        if segment.start == len(ids):
            ids.extend(segment.response_ids)
    return ids
