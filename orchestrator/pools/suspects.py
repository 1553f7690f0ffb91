"""Which prompt groups kill the members that run them. A state machine: it owns no tasks, clients or clock.

A member's death says little about what ran on it: one of its groups may be the cause, or none. It says nothing of what
was not begun, or died with its node. A group that has lost SUSPECTED members is a suspect. Suspects run apart from all
others, with half of those that they last died with: so one guilty group among n is alone after log2 n deaths, and those
that come whole are done with. Only members that ran nothing else count against a group: one that lost DEATHS of them is
guilty, and is run no more. So a prompt that kills its actor is found, and what only stood beside it, or beside a node
that failed, is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

SUSPECTED = 2  # members that a group may lose before it runs alone
DEATHS = 3  # members that die with nothing else to do, before what they did is given up
MOMENT = 10.0  # seconds in which the members of a node that fails are found dead


@dataclass
class Nodes:
    """When a member last died on each node, seconds of any one clock: what dies with its node was not killed by what it
    ran."""

    last: dict[str, float] = field(default_factory=dict)

    def tells(self, node: str | None, asked: float, now: float) -> bool:
        """Whether a death says something of what was `asked` then: not if it ran when another member of the node died,
        a moment ago."""
        last = self.last.get(node) if node else None
        return last is None or asked > last or now - last > MOMENT

    def note(self, node: str | None, now: float) -> None:
        """A member has died. Those that follow it within the moment are of the same cause."""
        if node and now - self.last.get(node, -MOMENT - now - 1.0) > MOMENT:
            self.last[node] = now


@dataclass
class Suspects:
    """Members that died, by the group that they ran: `deaths` in all, `alone` with nothing beside it. Of a suspect also
    the `company` that it may run in, itself included, and of any group the deaths `before` it was begun."""

    deaths: Counter[int] = field(default_factory=Counter)
    alone: Counter[int] = field(default_factory=Counter)
    company: dict[int, int] = field(default_factory=dict)
    before: Counter[int] = field(default_factory=Counter)
    nodes: Nodes = field(default_factory=Nodes)  # not saved: its clock is this process's

    def died(self, groups: Set[int], told: Set[int] | None = None) -> set[int]:
        """A member died that was to run these groups. It says something of all, or of those `told`; of one that was
        never begun on DEATHS members it does too: it may kill before it can be said to have begun. Returns those that
        are guilty."""
        silent = set() if told is None else groups - told
        self.before.update(silent)
        ran = {index for index in groups if index not in silent or self.before[index] > DEATHS}
        self.deaths.update(ran)
        if len(groups) == 1:
            self.alone.update(ran)
        half = max(1, (len(ran) + 1) // 2)
        self.company |= {index: half for index in ran if self.suspected(index)}
        return {index for index in groups if self.guilty(index)}

    def cells(self, suspects: Iterable[int], most: int) -> list[list[int]]:
        """Suspects as they are to run, `most` together at the most: each with others that may have as much company."""
        by_company: dict[int, list[int]] = {}
        for index in sorted(suspects):
            by_company.setdefault(min(most, self.company.get(index, 1)), []).append(index)
        return [
            several[start : start + size]
            for size, several in sorted(by_company.items())
            for start in range(0, len(several), size)
        ]

    def acquit(self, index: int) -> None:
        """A group has come whole: members that died under it had another cause, unless it is guilty already."""
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
        """Take in what a checkpoint knew. An earlier format knew of no company: its suspects run alone."""
        self.deaths |= Counter(dict(state["deaths"]))
        self.alone |= Counter(dict(state["alone"]))
        self.before |= Counter(dict(state.get("before", ())))
        for index, company in dict(state.get("company", ())).items():
            self.company[index] = min(company, self.company.get(index, company))
