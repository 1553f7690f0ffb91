"""Scores that a scorer keeps of responses it will be asked about again: teachers' and datasets' own, epoch after epoch.

Bounded by bytes; the least recently asked for go first. Pure: scores of other weights are for its owner to clear.
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
    """Of what was asked for and the tokens that decide the answer."""
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
        """Keep scores; others make room. What is beyond the bound by itself is not kept."""
        if key in self._kept or score.nbytes > self._most:
            return
        self._kept[key] = _apart(score)
        self.nbytes += score.nbytes
        while self.nbytes > self._most:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def clear(self) -> None:
        self._kept.clear()
        self.nbytes = 0


def _apart(score: Score) -> Score:
    """Arrays of its own: those of a batch are views that would keep the whole batch."""
    names = ("logprobs", "support_ids", "support_logprobs", "tail_logprob")
    return replace(score, **{n: array.copy() for n in names if (array := getattr(score, n)) is not None})
