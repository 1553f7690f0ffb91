"""Leases of prompt groups to members that write responses. A state machine: it owns no tasks, clients or clock.

Capacity follows from the staleness bound, never from a sleep: with B groups a step, s steps done and a bound of n
versions, group i may be leased while i < (s + 1 + n) * B. Batches form in lease order, so what is leased now is
trained within n versions of the weights it is sampled with. Which source writes a group follows from its index.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """One response to sample: sample `sample` of prompt group `index`, for the `attempt`-th time."""

    index: int
    sample: int
    attempt: int = 0

    @property
    def group(self) -> str:
        return f"{self.index:08d}"

    @property
    def uid(self) -> str:
        return f"{self.group}.{self.sample:03d}"

    def seed(self, run_seed: int) -> int:
        """hash(run seed, uid, attempt), 63 bits: the same response whoever samples it, and when."""
        digest = hashlib.blake2b(f"{run_seed}/{self.uid}/{self.attempt}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class Lease:
    """Tickets granted to one member of a source: student, teacher or dataset."""

    source: str
    member: int
    tickets: tuple[Ticket, ...]


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
    """`first` is the index of the first group to lease (after a resume, the first that no step has trained);
    `source(index)` says who writes a group."""

    groups_per_step: int
    samples_per_group: int
    max_staleness: int
    steps: int
    first: int = 0
    source: Callable[[int], str] = lambda index: "student"
    _next: int = field(init=False)
    _open: dict[str, list[list[Ticket]]] = field(init=False, default_factory=lambda: defaultdict(list))  # in order

    def __post_init__(self) -> None:
        self._next = self.first

    def capacity(self, steps_done: int) -> int:
        """How many new groups may be leased now."""
        waiting = sum(tickets[0].attempt == 0 for groups in self._open.values() for tickets in groups)
        return waiting + self._unopened(steps_done)

    def grant(self, steps_done: int, free: Mapping[str, Mapping[int, int]], until: int | None = None) -> list[Lease]:
        """Leases for members with free slots (source -> member -> responses it can take), lost tickets first. No group
        of a step beyond `until` is leased yet.

        A group stays on one member, for its prefix cache; the member with most room takes it. A source without room
        keeps its groups waiting and holds up no other.
        """
        for _ in range(self._unopened(steps_done, until)):
            group = [Ticket(self._next, sample) for sample in range(self.samples_per_group)]
            self._open[self.source(self._next)].append(group)
            self._next += 1
        return [lease for source, members in free.items() for lease in self._grant(source, members)]

    def lose(self, tickets: Iterable[Ticket]) -> None:
        """Tickets that yielded nothing before their member died: they are leased again under the next attempt."""
        for ticket in tickets:
            again = Ticket(ticket.index, ticket.sample, ticket.attempt + 1)
            insort(self._open[self.source(ticket.index)], [again])

    def _unopened(self, steps_done: int, until: int | None = None) -> int:
        horizon = min(steps_done + 1 + self.max_staleness, self.steps if until is None else min(until, self.steps))
        return max(0, horizon * self.groups_per_step - self._next)

    def _grant(self, source: str, free: Mapping[int, int]) -> list[Lease]:
        room = {member: slots for member, slots in sorted(free.items()) if slots > 0}
        granted: dict[int, list[Ticket]] = {}
        waiting = self._open[source]
        while room and waiting:
            member = max(room, key=lambda m: (room[m], -m))
            tickets = waiting.pop(0)
            granted.setdefault(member, []).extend(tickets)
            room[member] -= len(tickets)
            if room[member] <= 0:
                del room[member]
        return [Lease(source, member, tuple(tickets)) for member, tickets in granted.items()]
