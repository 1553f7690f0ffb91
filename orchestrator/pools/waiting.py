"""Calls that wait for a free member: first come, first served. A state machine: it owns no tasks and no members.

A member is free until its load reaches the bound. Further calls wait here for the first free member, which may be one
that joins later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.pools.member import PoolMember


@dataclass(eq=False)
class Waiting:
    """A waiting call. `near` as in Pool.call; `place` resolves to the member that it goes to."""

    near: int | None
    load: int
    place: asyncio.Future[PoolMember]

    @property
    def given(self) -> bool:
        """Whether a member was found."""
        return self.place.done() and not self.place.cancelled() and self.place.exception() is None


@dataclass
class WaitingLine:
    """Waiting calls, and their total `load`. A member whose load reaches `bound` is not free; None: no bound. `bounds`:
    those of kinds that have another."""

    bound: int | None = None
    bounds: Mapping[str, int] = field(default_factory=dict)
    load: int = 0
    _calls: deque[Waiting] = field(default_factory=deque)

    def join(self, near: int | None, load: int) -> Waiting:
        call = Waiting(near, load, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self.load += load
        return call

    def leave(self, call: Waiting) -> None:
        """Remove a call, if it still waits."""
        if call in self._calls:
            self._remove(call)

    def at_once(self, members: Sequence[PoolMember], near: int | None) -> PoolMember | None:
        """A member for a call that need not wait; None if calls wait already or no member is free."""
        return None if self._calls else self._place(members, near)

    def next(self, members: Sequence[PoolMember]) -> tuple[Waiting, PoolMember] | None:
        """Remove the first call that one of these members is free for; return it with that member."""
        for call in self._calls:
            if member := self._place(members, call.near):
                self._remove(call)
                return call, member
            if call.near is None:  # no member is free
                break
        return None

    def refuse(self, error: Exception) -> None:
        """Raise an error in every waiting call: no member will come."""
        for call in list(self._calls):
            self._remove(call)
            if not call.place.cancelled():
                call.place.set_exception(error)

    def free(self, members: Sequence[PoolMember]) -> PoolMember | None:
        """The member with the least load for its bound, if it is free."""
        best = min(members, key=lambda m: (self._fill(m), m.number), default=None)
        return best if best and (self.bound is None or self._fill(best) < 1) else None

    def most(self, members: Iterable[PoolMember]) -> int:
        """The load that members may have together; of a line with a bound."""
        return sum(self.bounds.get(member.kind, self.bound or 0) for member in members)

    def _fill(self, member: PoolMember) -> float:
        """A member's load, as a share of its bound where there is one."""
        return member.load if self.bound is None else member.load / self.bounds.get(member.kind, self.bound)

    def _place(self, members: Sequence[PoolMember], near: int | None) -> PoolMember | None:
        return self.free(members if near is None or not members else [members[near % len(members)]])

    def _remove(self, call: Waiting) -> None:
        self._calls.remove(call)
        self.load -= call.load

    def __bool__(self) -> bool:
        return bool(self._calls)
