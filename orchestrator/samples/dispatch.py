"""Leases of prompt groups to members that write responses. A state machine: it owns no tasks, clients or clock.

Capacity follows from the staleness bound, never from a sleep: with B groups a step, s steps done and a bound of n
versions, (s + 1 + n) * B groups may be trained, running or buffered, beside those that were passed over. Which source
writes a group follows from its index. A group that kills its members is quarantined (suspects.py); everything else is
leased until it is sampled.
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
        """hash(run seed, uid, attempt), 63 bits: the same response whoever samples it, and when."""
        digest = hashlib.blake2b(f"{run_seed}/{self.uid}/{self.attempt}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """Tickets granted to one member of a source: student, teacher or dataset. A ticket is granted once, so no two are
    equal."""

    source: str
    member: int
    tickets: tuple[Ticket, ...]


class Room(NamedTuple):
    """What a member can take: responses, and whether it has none now."""

    slots: int
    idle: bool


def room_for(slots: int, load: int) -> Room:
    """Room of a member that decodes `slots` responses at a time and has `load`. It is offered in eighths: a call for
    each place that becomes free would cost more than the place is worth."""
    free = slots - load
    return Room(free if free >= min(slots // 8, load) else 0, idle=not load)


def source_of(index: int, fractions: Mapping[str, float], run_seed: int) -> str:
    """Who writes prompt group `index`: a draw by `fractions` (they sum to 1) that depends on nothing else."""
    digest = hashlib.blake2b(f"{run_seed}/source/{index}".encode(), digest_size=8).digest()
    draw, total = int.from_bytes(digest, "big") / 2**64, 0.0
    for source, fraction in fractions.items():
        total += fraction
        if draw < total:
            return source
    return [source for source, fraction in fractions.items() if fraction > 0][-1]


@dataclass
class Dispatch:
    """`ledger` says what is trained already, with what was `passed_over`: groups without a sample that can be trained.
    `source(index)` says who writes a group.

    A group that lost a member is leased again like any other, suspects apart: to an idle member that is given nothing
    else meanwhile. What is found guilty is leased no more.
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
    _open: dict[str, list[list[Ticket]]] = field(init=False, default_factory=lambda: defaultdict(list))  # in order
    _reserved: dict[tuple[str, int], frozenset[int]] = field(init=False, default_factory=dict)  # member -> suspects

    def __post_init__(self) -> None:
        self._next, self._opened = self.ledger.floor, self.ledger.count

    def pass_over(self, groups: int) -> None:
        """So many groups are behind the run, and made up no step: as many more may be leased."""
        self.passed_over += groups

    def wants_room(self, steps_done: int, until: int | None = None) -> bool:
        """Whether anything is to be leased, if a member has room for it; `until` as in `grant`."""
        return any(self._open.values()) or self._unopened(steps_done, until) > 0

    def grant(self, steps_done: int, room: Mapping[str, Mapping[int, Room]], until: int | None = None) -> list[Lease]:
        """Leases for members with room (source -> member -> its room), lost tickets first. No group of a step beyond
        `until` is leased yet.

        A group stays on one member, for its prefix cache; the member with most room takes it. A source without room
        keeps its groups waiting and holds up no other.
        """
        for _ in range(self._unopened(steps_done, until)):
            while self._next in self.ledger.beyond:
                self._next += 1
            group = [Ticket(self._next, sample) for sample in range(self.samples_per_group)]
            self._open[self.source(self._next)].append(group)
            self._next, self._opened = self._next + 1, self._opened + 1
        return [lease for source, members in room.items() for lease in self._grant(source, members)]

    def settle(self, lease: Lease) -> None:
        """A lease is over: all that was asked of its member has ended, or was lost."""
        self._reserved.pop((lease.source, lease.member), None)

    def lose(self, tickets: Iterable[Ticket], died: bool = False, told: Set[int] | None = None) -> set[int]:
        """Lease tickets again under the next attempt. Where a member `died`, they are what it was to run, `told` as in
        Suspects.died. Returns which of their groups are guilty, of this or from before: those are leased no more, and
        what they lack never comes."""
        lost = sorted(tickets)
        groups = {ticket.index for ticket in lost}
        guilty = (
            self.suspects.died(groups, told) if died else {index for index in groups if self.suspects.guilty(index)}
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

    def _grant(self, source: str, members: Mapping[int, Room]) -> list[Lease]:
        free = {m: room for m, room in members.items() if room.slots > 0 and (source, m) not in self._reserved}
        leases, free = self._grant_suspects(source, free)
        heap = [(-room.slots, member) for member, room in free.items()]
        heapify(heap)
        granted: dict[int, list[Ticket]] = {}
        waiting, held = self._open[source], []
        taken = 0
        for tickets in waiting:
            if not heap:
                break
            taken += 1
            if self.suspects.suspected(tickets[0].index):  # waits for an idle member
                held.append(tickets)
                continue
            slots, member = heap[0]
            granted.setdefault(member, []).extend(tickets)
            if slots + len(tickets) < 0:
                heapreplace(heap, (slots + len(tickets), member))
            else:
                heappop(heap)
        waiting[:taken] = held
        return leases + [Lease(source, member, tuple(tickets)) for member, tickets in granted.items()]

    def _grant_suspects(self, source: str, free: dict[int, Room]) -> tuple[list[Lease], dict[int, Room]]:
        """Suspect groups, all their open tickets, apart on idle members; and the members that are left."""
        leases: list[Lease] = []
        if not self.suspects.deaths:
            return leases, free
        suspects = {group[0].index for group in self._open[source] if self.suspects.suspected(group[0].index)}
        untested = suspects.difference(*self._reserved.values())
        idle = [member for member in free if free[member].idle]
        most = min((max(1, free[member].slots // self.samples_per_group) for member in idle), default=1)
        for cell, member in zip(self.suspects.cells(untested, most), idle, strict=False):
            tickets = [t for group in self._open[source] for t in group if t.index in cell]
            self._open[source] = [group for group in self._open[source] if group[0].index not in cell]
            self._reserved[source, member] = frozenset(cell)
            leases.append(Lease(source, member, tuple(tickets)))
        taken = {lease.member for lease in leases}
        return leases, {member: room for member, room in free.items() if member not in taken}
