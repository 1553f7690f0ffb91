"""Which prompt groups kill the members that run them. A state machine: it owns no tasks, clients or clock.

A member's death says little about what ran on it: one of its groups may be the cause, or none. A group that has lost
SUSPECTED members is a suspect, and from then on it runs alone. Only members that ran nothing else count against it: a
group that lost DEATHS of those is guilty, and is run no more. So a prompt that kills its actor is found, and what only
stood beside it, or beside a node that failed, is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

SUSPECTED = 2  # members that a group may lose before it runs alone
DEATHS = 3  # members that die with nothing else to do, before what they did is given up


@dataclass
class Suspects:
    """Members that died, by the group that they ran: `deaths` in all, `alone` with nothing beside it."""

    deaths: Counter[int] = field(default_factory=Counter)
    alone: Counter[int] = field(default_factory=Counter)

    def died(self, groups: Set[int]) -> set[int]:
        """A member died while it ran these groups. Returns those that are guilty."""
        self.deaths.update(groups)
        if len(groups) == 1:
            self.alone.update(groups)
        return {index for index in groups if self.guilty(index)}

    def acquit(self, index: int) -> None:
        """A group has come whole: members that died under it had another cause, unless it is guilty already."""
        if not self.guilty(index):
            self.deaths.pop(index, None)
            self.alone.pop(index, None)

    def suspected(self, index: int) -> bool:
        return self.deaths[index] >= SUSPECTED

    def guilty(self, index: int) -> bool:
        return self.alone[index] >= DEATHS

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"deaths": sorted(self.deaths.items()), "alone": sorted(self.alone.items())}

    def recall(self, state: dict[str, Any]) -> None:
        """Take in what a checkpoint knew."""
        self.deaths |= Counter(dict(state["deaths"]))
        self.alone |= Counter(dict(state["alone"]))
