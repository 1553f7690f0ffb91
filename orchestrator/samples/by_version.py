"""Prompt groups by policy version. There are few versions at a time, however many groups there are."""

from __future__ import annotations

from collections import Counter, defaultdict


class ByVersion:
    """Group indices, each under one version. Reads cost O(versions), not O(groups)."""

    def __init__(self) -> None:
        self._under: dict[float, set[int]] = defaultdict(set)

    def put(self, index: int, version: float) -> None:
        self._under[version].add(index)

    def remove(self, index: int, version: float) -> None:
        """Does nothing for a group that is not there."""
        under = self._under.get(version, set())
        under.discard(index)
        if not under:
            self._under.pop(version, None)

    def counts(self) -> Counter[float]:
        """Number of groups under each version."""
        return Counter({version: len(under) for version, under in self._under.items()})

    def first(self, count: int) -> list[int]:
        """The first `count` groups by version, then index."""
        found: list[int] = []
        for version in sorted(self._under):
            if len(found) >= count:
                break
            found += sorted(self._under[version])
        return found[:count]

    def below(self, version: float) -> list[int]:
        """Groups under lower versions, in index order."""
        return sorted(index for under, indices in self._under.items() if under < version for index in indices)
