"""Which responses' key-values a scorer keeps between their segments. Pure: it knows token ids and nothing of tensors.

Bounded by tokens; the least recently kept go first, and so what is left of a response that was given up. A cache is
taken out to be used and kept again when it has grown, so a forward that fails leaves nothing half-grown behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

Cache = TypeVar("Cache")


class PrefixCache(Generic[Cache]):
    def __init__(self, most_tokens: int) -> None:
        self._most = most_tokens
        self._kept: dict[str, tuple[list[int], Cache]] = {}  # by uid, the longest unused first

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids, _ in self._kept.values())

    def take(self, uid: str, ids: Sequence[int]) -> tuple[int, Cache] | None:
        """What is kept of a response if it is a prefix of `ids`: its length in tokens and its cache, which is no longer
        kept. Of another attempt, or longer than `ids`, it is of no use."""
        prefix, cache = self._kept.pop(uid, (None, None))
        if prefix is None or cache is None or prefix != list(ids[: len(prefix)]):
            return None
        return len(prefix), cache

    def keep(self, uid: str, ids: Sequence[int], cache: Cache) -> None:
        """Keep the cache of a response's first tokens; others make room. One beyond the bound by itself is not kept."""
        self._kept.pop(uid, None)
        if len(ids) > self._most:
            return
        self._kept[uid] = list(ids), cache
        while self.tokens > self._most:
            del self._kept[next(iter(self._kept))]

    def clear(self) -> None:
        """Let go of everything: other weights make other key-values."""
        self._kept.clear()
