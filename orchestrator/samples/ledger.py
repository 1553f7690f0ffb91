"""Which prompt groups are done, trained or passed over: the whole data position of a run, small enough for every
checkpoint.

Groups are numbered in data order and done nearly in that order: those below `all_below`, and a few `beyond` it that
were sampled sooner. A resume leases all others.
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
        """Number of groups that are done."""
        return self.all_below + len(self.beyond)

    def with_done(self, indices: Iterable[int]) -> Ledger:
        """The ledger with these groups too. Raises ValueError for a group that is done already."""
        new = frozenset(indices)
        if twice := sorted(index for index in new if index in self):
            raise ValueError(f"prompt groups {twice[:3]} are done already; no token may enter two batches")
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
