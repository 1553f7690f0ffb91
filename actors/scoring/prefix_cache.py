"""The KV caches that a scorer keeps between a response's segments. Pure: it handles token ids, never tensors.

Bounded by tokens; the least recently kept go first, among them those of abandoned responses. A cache is taken out for a
forward pass and kept again afterwards, so a pass that fails leaves no half-grown cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

Cache = TypeVar("Cache")


class PrefixCache(Generic[Cache]):
    def __init__(self, most_tokens: int) -> None:
        self._most = most_tokens
        self._kept: dict[str, tuple[list[int], Cache]] = {}  # by uid, least recently kept first

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids, _ in self._kept.values())

    def take(self, uid: str, ids: Sequence[int]) -> tuple[int, Cache] | None:
        """Remove and return a response's (length in tokens, cache) if its ids are a prefix of `ids`. Otherwise, as for
        another attempt, drop it and return None."""
        prefix, cache = self._kept.pop(uid, (None, None))
        if prefix is None or cache is None or prefix != list(ids[: len(prefix)]):
            return None
        return len(prefix), cache

    def keep(self, uid: str, ids: Sequence[int], cache: Cache) -> None:
        """Keep the cache of a response's first tokens and evict others for it; not if it exceeds the bound alone."""
        self._kept.pop(uid, None)
        if len(ids) > self._most:
            return
        self._kept[uid] = list(ids), cache
        while self.tokens > self._most:
            del self._kept[next(iter(self._kept))]

    def clear(self) -> None:
        """Drop everything, for new weights."""
        self._kept.clear()
