"""Which prompt groups are trained: the whole data position of a run, small enough for every checkpoint.

Groups are numbered in data order and trained nearly in that order: those below `all_below` are trained, and a few
`beyond` it that were sampled sooner. A resume leases all others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ledger:
    all_below: int = 0
    beyond: frozenset[int] = frozenset()

    def __contains__(self, index: int) -> bool:
        return index < self.all_below or index in self.beyond

    @property
    def count(self) -> int:
        """Number of trained groups."""
        return self.all_below + len(self.beyond)

    def trained(self, indices: Iterable[int]) -> Ledger:
        """The ledger after a step on these groups. Raises ValueError for a group that is trained already."""
        new = frozenset(indices)
        if twice := sorted(index for index in new if index in self):
            raise ValueError(f"prompt groups {twice[:3]} are trained already; no token may enter two batches")
        below, beyond = self.all_below, self.beyond | new
        while below in beyond:
            below += 1
        return Ledger(below, frozenset(index for index in beyond if index >= below))

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"floor": self.all_below, "beyond": sorted(self.beyond)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Ledger:
        return cls(state["floor"], frozenset(state["beyond"]))
