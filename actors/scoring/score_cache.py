"""Scores kept for responses that come again every epoch: those of teachers and datasets.

Bounded by bytes, least recently used first out. Pure: the owner clears it when the weights change.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actors.wire.records import Score

Key = bytes


def key_of(kind: object, *token_ids: Sequence[int]) -> Key:
    """Digest of the kind of request and of all token ids that the scores depend on."""
    digest = hashlib.blake2b(repr(kind).encode(), digest_size=16)
    for ids in token_ids:
        digest.update(len(ids).to_bytes(8, "big"))
        digest.update(np.asarray(ids, dtype=np.int64).tobytes())
    return digest.digest()


class ScoreCache:
    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[Key, Score] = OrderedDict()
        self.nbytes = 0

    def get(self, key: Key, uid: str) -> Score | None:
        """The scores kept under a key, as those of `uid`."""
        score = self._kept.get(key)
        if score is None:
            return None
        self._kept.move_to_end(key)
        return replace(score, uid=uid)

    def put(self, key: Key, score: Score) -> None:
        """Keep scores and evict others for them; not if they exceed the bound alone."""
        if key in self._kept or score.nbytes > self._most:
            return
        self._kept[key] = _copied(score)
        self.nbytes += score.nbytes
        while self.nbytes > self._most:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def clear(self) -> None:
        self._kept.clear()
        self.nbytes = 0


def _copied(score: Score) -> Score:
    """The score with copied arrays: the originals are views that would keep their whole batch in memory."""
    names = ("logprobs", "support_ids", "support_logprobs", "tail_logprob")
    return replace(score, **{n: array.copy() for n in names if (array := getattr(score, n)) is not None})
