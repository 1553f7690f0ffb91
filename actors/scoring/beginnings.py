"""Beginnings of responses that arrive in segments: the token ids that a scorer remembers of each.

A segment's row holds its new tokens only, and the last row the whole response: no token travels more than twice. A
scorer that lacks a beginning, because it started late or ran out of space, is sent the earlier payloads again.
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
    """Token ids of unfinished responses by channel, uid and attempt; at most `tokens` of them, the response that grew
    longest ago is forgotten first. The channel is part of the key because attempts restart at 0 with a new learner."""

    tokens: int = TOKENS
    _held: int = 0
    _ids: OrderedDict[tuple[str, str, int], array[int]] = field(default_factory=OrderedDict)

    def complete(
        self, channel: str, samples: Iterable[Sample], earlier: Sequence[pa.RecordBatch] = ()
    ) -> tuple[dict[str, list[int]], tuple[str, ...]]:
        """The ids of each response so far, by uid, and the uids whose beginning is neither remembered nor in the
        `earlier` payloads. Raises RuntimeError if `earlier` payloads were given and a beginning is still missing."""
        sent = by_response(earlier)
        found = {s.uid: self._so_far(channel, s, sent.get((s.uid, s.attempt), ())) for s in samples}
        unknown = tuple(uid for uid, ids in found.items() if ids is None)
        if unknown and earlier:
            raise RuntimeError(f"earlier segments of {unknown[0]} and of {len(unknown) - 1} others are missing")
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
    """The ids of a response's segments from the first up to a gap."""
    ids = array("i")
    for segment in sorted(segments, key=lambda segment: segment.start):
        if segment.start == len(ids):
            ids.extend(segment.response_ids)
    return ids
