"""Leases of prompt groups to members that write responses. A state machine: it owns no tasks, clients or clock.

The staleness bound limits what is leased: with B groups a step, s steps done, S steps in all and a bound of n
versions, min(s + 1 + n, S) * B groups may have been leased so far, not counting those that were passed over. A group's
index decides its source.

A response is leased again (`lose`) when its member died, its payload was lost, or it is too old for buffer.py
(`expire`); intake.py says so. A group that kills its members is not leased again (suspects.py).
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

from orchestrator.pools.suspects import Suspects
from orchestrator.samples.ledger import Ledger


class Ticket(NamedTuple):
    """One response to sample: sample `sample` of prompt group `index`, for the `attempt`-th time."""

    index: int
    sample: int
    attempt: int = 0

    @classmethod
    def of(cls, uid: str, attempt: int) -> Ticket:
        """Inverse of `uid`."""
        group, sample = uid.split(".")
        return cls(int(group), int(sample), attempt)

    @property
    def group(self) -> str:
        return f"{self.index:08d}"

    @property
    def uid(self) -> str:
        return f"{self.index:08d}.{self.sample:03d}"

    def seed(self, run_seed: int) -> int:
        """hash(run seed, uid, attempt), 63 bits: the same seed on any member at any time."""
        digest = hashlib.blake2b(f"{run_seed}/{self.uid}/{self.attempt}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """Tickets granted to one member of a source. A ticket is granted once, so leases compare by identity."""

    source: str
    member: int
    tickets: tuple[Ticket, ...]


class FreeSlots(NamedTuple):
    """`count`: responses that a member can be given now; `idle`: it has none at work; `of`: the most it may have."""

    count: int
    idle: bool
    of: int = 1


def free_slots(slots: int, load: int) -> FreeSlots:
    """Free slots of a member that decodes `slots` responses at a time and has `load`. Fewer than an eighth of all are
    not offered: a call per free slot would cost more than it gains."""
    free = slots - load
    return FreeSlots(free if free >= min(slots // 8, load) else 0, not load, slots)


def source_of(index: int, fractions: Mapping[str, float], run_seed: int) -> str:
    """The source of prompt group `index`, drawn by `fractions` (they sum to 1). Depends on the arguments alone."""
    digest = hashlib.blake2b(f"{run_seed}/source/{index}".encode(), digest_size=8).digest()
    draw, total = int.from_bytes(digest, "big") / 2**64, 0.0
    for source, fraction in fractions.items():
        total += fraction
        if draw < total:
            return source
    return [source for source, fraction in fractions.items() if fraction > 0][-1]


@dataclass
class Leases:
    """Leases the groups that `ledger` does not list as done. `passed_over` counts groups without a trainable sample.
    `source(index)` names the source of a group.

    A suspect is leased apart, to an idle member that gets nothing else meanwhile. A guilty group is not leased again.
    """

    groups_per_step: int
    samples_per_group: int
    max_staleness: int
    steps: int
    ledger: Ledger = field(default_factory=Ledger)
    source: Callable[[int], str] = lambda index: "student"
    suspects: Suspects = field(default_factory=Suspects)
    passed_over: int = 0
    _next: int = field(init=False)
    _opened: int = field(init=False)  # groups trained or leased
    _open: dict[str, list[list[Ticket]]] = field(
        init=False, default_factory=lambda: defaultdict(list)
    )  # by source, in order
    _reserved: dict[tuple[str, int], frozenset[int]] = field(init=False, default_factory=dict)  # member -> suspects

    def __post_init__(self) -> None:
        self._next, self._opened = self.ledger.all_below, self.ledger.count

    def pass_over(self, groups: int) -> None:
        """Count groups that are done without having been trained: as many more may be leased."""
        self.passed_over += groups

    def has_work(self, steps_done: int, until: int | None = None) -> bool:
        """Whether there are tickets to lease, given free slots; `until` as in `grant`."""
        return any(self._open.values()) or self._unopened(steps_done, until) > 0

    def grant(
        self, steps_done: int, free: Mapping[str, Mapping[int, FreeSlots]], until: int | None = None
    ) -> list[Lease]:
        """Leases for members with free slots (by source and member), lost tickets first. Groups of steps beyond
        `until` are not leased yet.

        A group goes whole, for the prefix cache, to the member with the largest share of its slots free. A source
        without free members does not delay another.
        """
        for _ in range(self._unopened(steps_done, until)):
            while self._next in self.ledger.beyond:
                self._next += 1
            group = [Ticket(self._next, sample) for sample in range(self.samples_per_group)]
            self._open[self.source(self._next)].append(group)
            self._next, self._opened = self._next + 1, self._opened + 1
        return [lease for source, members in free.items() for lease in self._grant(source, members)]

    def settle(self, lease: Lease) -> None:
        """End a lease: each of its responses has ended or is lost."""
        self._reserved.pop((lease.source, lease.member), None)

    def lose(self, tickets: Iterable[Ticket], died: bool = False, implicated: Set[int] | None = None) -> set[int]:
        """Queue lost tickets again, each under its next attempt. If their member `died`, its death counts against their
        groups; `implicated` as in Suspects.died. Returns their guilty groups, which are not leased again."""
        lost = sorted(tickets)
        groups = {ticket.index for ticket in lost}
        guilty = (
            self.suspects.died(groups, implicated)
            if died
            else {index for index in groups if self.suspects.guilty(index)}
        )
        for ticket in lost:
            if ticket.index not in guilty:
                again = Ticket(ticket.index, ticket.sample, ticket.attempt + 1)
                insort(self._open[self.source(ticket.index)], [again])
        if guilty:
            for waiting in self._open.values():
                waiting[:] = [tickets for tickets in waiting if tickets[0].index not in guilty]
        return guilty

    def _unopened(self, steps_done: int, until: int | None = None) -> int:
        horizon = min(steps_done + 1 + self.max_staleness, self.steps if until is None else min(until, self.steps))
        return max(0, horizon * self.groups_per_step + self.passed_over - self._opened)

    def _grant(self, source: str, members: Mapping[int, FreeSlots]) -> list[Lease]:
        free = {m: slots for m, slots in members.items() if slots.count > 0 and (source, m) not in self._reserved}
        leases, free = self._grant_suspects(source, free)
        left = {member: slots.count for member, slots in free.items()}
        heap = [(-slots.count / slots.of, member) for member, slots in free.items()]
        heapify(heap)
        granted: dict[int, list[Ticket]] = {}
        waiting, held = self._open[source], []
        taken = 0
        for tickets in waiting:
            if not heap:
                break
            taken += 1
            if self.suspects.suspected(tickets[0].index):  # needs an idle member
                held.append(tickets)
                continue
            _, member = heap[0]
            granted.setdefault(member, []).extend(tickets)
            left[member] -= len(tickets)
            if left[member] > 0:
                heapreplace(heap, (-left[member] / free[member].of, member))
            else:
                heappop(heap)
        waiting[:taken] = held
        return leases + [Lease(source, member, tuple(tickets)) for member, tickets in granted.items()]

    def _grant_suspects(self, source: str, free: dict[int, FreeSlots]) -> tuple[list[Lease], dict[int, FreeSlots]]:
        """Leases of suspect groups to idle members, one cell a member; and the members left over."""
        leases: list[Lease] = []
        if not self.suspects.deaths:
            return leases, free
        suspects = {group[0].index for group in self._open[source] if self.suspects.suspected(group[0].index)}
        untested = suspects.difference(*self._reserved.values())
        idle = [member for member in free if free[member].idle]
        most = min((max(1, free[member].count // self.samples_per_group) for member in idle), default=1)
        for cell, member in zip(self.suspects.cells(untested, most), idle, strict=False):
            tickets = [t for group in self._open[source] for t in group if t.index in cell]
            self._open[source] = [group for group in self._open[source] if group[0].index not in cell]
            self._reserved[source, member] = frozenset(cell)
            leases.append(Lease(source, member, tuple(tickets)))
        taken = {lease.member for lease in leases}
        return leases, {member: slots for member, slots in free.items() if member not in taken}
