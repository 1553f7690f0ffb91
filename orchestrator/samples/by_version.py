"""Prompt groups by a version of the policy: at any time they share a few versions, however many groups there are."""

from __future__ import annotations

from collections import Counter, defaultdict


class ByVersion:
    """Indices of groups, each under one version. Reading costs by the versions, not by the groups that are kept."""

    def __init__(self) -> None:
        self._under: dict[float, set[int]] = defaultdict(set)

    def put(self, index: int, version: float) -> None:
        self._under[version].add(index)

    def remove(self, index: int, version: float) -> None:
        """Of a group that is not there, nothing."""
        under = self._under.get(version, set())
        under.discard(index)
        if not under:
            self._under.pop(version, None)

    def counts(self) -> Counter[float]:
        """How many groups there are under each version."""
        return Counter({version: len(under) for version, under in self._under.items()})

    def first(self, count: int) -> list[int]:
        """So many groups, or all: those under the lowest versions, and of one version those with the lowest index."""
        found: list[int] = []
        for version in sorted(self._under):
            if len(found) >= count:
                break
            found += sorted(self._under[version])
        return found[:count]

    def below(self, version: float) -> list[int]:
        """Groups under lower versions, in index order."""
        return sorted(index for under, indices in self._under.items() if under < version for index in indices)
