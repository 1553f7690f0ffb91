"""The room that a GPU has for what a budget counts: what there is, what else takes of it, and what one takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.preflight.comparison import size

TRUSTED = 0.9  # share of a GPU that a torch role plans with: the rest is CUDA's, the allocator's and NCCL's


@dataclass(frozen=True)
class Room:
    """Bytes: `have` in all, `taken` by name, `each` of what is counted, whose name is `unit`. The count is at least
    `least` and at most `most`, from `step` on a multiple of it."""

    have: int
    taken: Mapping[str, int]
    each: int
    unit: str
    least: int
    most: int
    step: int

    @property
    def left(self) -> int:
        return self.have - sum(self.taken.values())

    @property
    def count(self) -> int:
        fits = max(0, self.left) // self.each
        return min(self.most, max(self.least, fits // self.step * self.step or fits))

    @property
    def words(self) -> str:
        """How the count comes about."""
        taken = ", ".join(f"{size(amount)} {name}" for name, amount in self.taken.items() if amount)
        found = f"{size(self.have)} of a GPU less {taken} leave {size(max(0, self.left))}; {self.unit} takes"
        return f"{found} {size(self.each)}{self._bound}"

    @property
    def _bound(self) -> str:
        if self.left < self.least * self.each:
            return f"; that is no room for {self.least}, and it may run out of memory"
        return f"; more than {self.most} gains nothing" if self.left >= (self.most + self.step) * self.each else ""
