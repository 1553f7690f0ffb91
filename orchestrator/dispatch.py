"""Leases of prompt groups to rollout members. A state machine: it owns no tasks, no clients and no clock.

Capacity follows from the staleness bound, never from a sleep: with B groups a step, s steps done and a bound of n
versions, group i may be leased while i < (s + 1 + n) * B. Batches form in lease order, so what is leased now is
trained within n versions of the weights it is sampled with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
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
    """Tickets granted to one member."""

    member: int
    tickets: tuple[Ticket, ...]


@dataclass
class Dispatch:
    """`first` is the index of the first group to lease (after a resume, the first that no step has trained)."""

    groups_per_step: int
    samples_per_group: int
    max_staleness: int
    steps: int
    first: int = 0
    _next: int = field(init=False)
    _again: list[Ticket] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._next = self.first

    def capacity(self, steps_done: int) -> int:
        """How many new groups may be leased now."""
        horizon = min(steps_done + 1 + self.max_staleness, self.steps)
        return max(0, horizon * self.groups_per_step - self._next)

    def grant(self, steps_done: int, free: Mapping[int, int]) -> list[Lease]:
        """Leases for members with free slots (member -> responses it can take), lost tickets first.

        A group stays on one member, for its prefix cache; the member with most room takes it.
        """
        room = {member: slots for member, slots in sorted(free.items()) if slots > 0}
        granted: dict[int, list[Ticket]] = {}
        while room and (tickets := self._take(steps_done)):
            member = max(room, key=lambda m: (room[m], -m))
            granted.setdefault(member, []).extend(tickets)
            room[member] -= len(tickets)
            if room[member] <= 0:
                del room[member]
        return [Lease(member, tuple(tickets)) for member, tickets in granted.items()]

    def lose(self, tickets: Iterable[Ticket]) -> None:
        """Tickets that yielded nothing before their member died: they are leased again under the next attempt."""
        self._again.extend(Ticket(t.index, t.sample, t.attempt + 1) for t in tickets)
        self._again.sort()

    def _take(self, steps_done: int) -> list[Ticket]:
        if self._again:
            return [self._again.pop(0)]
        if not self.capacity(steps_done):
            return []
        index, self._next = self._next, self._next + 1
        return [Ticket(index, sample) for sample in range(self.samples_per_group)]
