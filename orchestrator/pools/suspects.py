"""Finds prompt groups that kill the members that run them. A state machine: it owns no tasks, clients or clock.

Any of a dead member's groups may have caused its death, or none. Groups not begun, and deaths of a whole node, do not
count. A group under which SUSPECTED members died is a suspect. Suspects run apart from other groups, in cells of half
the size of the one that last died: one guilty group among n is alone after log2(n) deaths. A group that completes is
acquitted. A group that alone killed DEATHS members is guilty, and is not run again. So groups that only ran beside a
guilty one, or on a failed node, are not blamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

SUSPECTED = 2  # deaths that make a group a suspect
DEATHS = 3  # deaths under a group alone that make it guilty
MOMENT = 10.0  # seconds within which the members of a failed node are found dead


@dataclass
class Nodes:
    """The time of the last independent death on each node, in seconds of any one clock."""

    last: dict[str, float] = field(default_factory=dict)

    def implicates(self, node: str | None, submitted: float, now: float) -> bool:
        """Whether a death at `now` counts against work `submitted` then. It does not if another member of the node died
        within MOMENT, after the submission."""
        last = self.last.get(node) if node else None
        return last is None or submitted > last or now - last > MOMENT

    def note(self, node: str | None, now: float) -> None:
        """Note a death. Deaths on the node within MOMENT of it have the same cause."""
        if node and now - self.last.get(node, -MOMENT - now - 1.0) > MOMENT:
            self.last[node] = now


@dataclass
class Suspects:
    """Counts of dead members by group: `deaths` in all, `alone` with no other group, and `before` it was begun.
    `company` is the largest cell a suspect may run in, itself included."""

    deaths: Counter[int] = field(default_factory=Counter)
    alone: Counter[int] = field(default_factory=Counter)
    company: dict[int, int] = field(default_factory=dict)
    before: Counter[int] = field(default_factory=Counter)
    nodes: Nodes = field(default_factory=Nodes)  # not saved: its clock is this process's

    def died(self, groups: Set[int], implicated: Set[int] | None = None) -> set[int]:
        """Count the death of a member with these groups against those `implicated`, by default all. A group not begun
        on DEATHS dead members counts too: it may kill before it is seen to begin. Returns the guilty groups."""
        spared = set() if implicated is None else groups - implicated
        self.before.update(spared)
        ran = {index for index in groups if index not in spared or self.before[index] > DEATHS}
        self.deaths.update(ran)
        if len(groups) == 1:
            self.alone.update(ran)
        half = max(1, (len(ran) + 1) // 2)
        self.company |= {index: half for index in ran if self.suspected(index)}
        return {index for index in groups if self.guilty(index)}

    def cells(self, suspects: Iterable[int], most: int) -> list[list[int]]:
        """Suspects in cells to run together, of at most `most` groups. A cell holds groups of equal `company`."""
        by_company: dict[int, list[int]] = {}
        for index in sorted(suspects):
            by_company.setdefault(min(most, self.company.get(index, 1)), []).append(index)
        return [
            several[start : start + size]
            for size, several in sorted(by_company.items())
            for start in range(0, len(several), size)
        ]

    def acquit(self, index: int) -> None:
        """Clear a group that completed; a guilty one stays guilty."""
        if not self.guilty(index):
            self.deaths.pop(index, None)
            self.alone.pop(index, None)
            self.company.pop(index, None)
            self.before.pop(index, None)

    def suspected(self, index: int) -> bool:
        return self.deaths[index] >= SUSPECTED

    def guilty(self, index: int) -> bool:
        return self.alone[index] >= DEATHS

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        known = {"deaths": self.deaths, "alone": self.alone, "company": self.company, "before": self.before}
        return {name: sorted(counts.items()) for name, counts in known.items()}

    def recall(self, state: dict[str, Any]) -> None:
        """Merge a checkpoint's counts. An earlier format has no company: its suspects run alone."""
        self.deaths |= Counter(dict(state["deaths"]))
        self.alone |= Counter(dict(state["alone"]))
        self.before |= Counter(dict(state.get("before", ())))
        for index, company in dict(state.get("company", ())).items():
            self.company[index] = min(company, self.company.get(index, company))
