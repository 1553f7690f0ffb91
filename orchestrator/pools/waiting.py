"""Calls that wait for a member with room: first come, first served. A state machine: it owns no tasks and no members.

A member is given calls until its load reaches the bound. What it has then keeps it busy, and the rest waits here, where
whoever has room first takes it: a member that joins, or the others when one dies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.pools.member import PoolMember


@dataclass(eq=False)
class Waiting:
    """A call: its load, the number of the member that it is to be `near`, if any, and the member it is given."""

    near: int | None
    load: int
    place: asyncio.Future[PoolMember]

    @property
    def given(self) -> bool:
        """Whether it has its member."""
        return self.place.done() and not self.place.cancelled() and self.place.exception() is None


@dataclass
class WaitingLine:
    """`bound` is the load at which a member has no room, None: it always has. `load` is that of all calls that wait."""

    bound: int | None = None
    load: int = 0
    _calls: deque[Waiting] = field(default_factory=deque)

    def join(self, near: int | None, load: int) -> Waiting:
        call = Waiting(near, load, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self.load += load
        return call

    def leave(self, call: Waiting) -> None:
        """Wait no longer, if the call still does."""
        if call in self._calls:
            self._remove(call)

    def at_once(self, members: Sequence[PoolMember], near: int | None) -> PoolMember | None:
        """The member of a call that need not wait: nobody does, and there is room."""
        return None if self._calls else self._place(members, near)

    def next(self, members: Sequence[PoolMember]) -> tuple[Waiting, PoolMember] | None:
        """The first call that one of these members has room for, and which; it waits no more."""
        for call in self._calls:
            if member := self._place(members, call.near):
                self._remove(call)
                return call, member
            if call.near is None:  # nobody has room
                break
        return None

    def refuse(self, error: Exception) -> None:
        """Nobody will come: every call that waits raises this."""
        for call in list(self._calls):
            self._remove(call)
            if not call.place.cancelled():
                call.place.set_exception(error)

    def with_room(self, members: Sequence[PoolMember]) -> PoolMember | None:
        """The least-loaded of members, if it has room."""
        best = min(members, key=lambda m: (m.load, m.number), default=None)
        return best if best and (self.bound is None or best.load < self.bound) else None

    def _place(self, members: Sequence[PoolMember], near: int | None) -> PoolMember | None:
        return self.with_room(members if near is None or not members else [members[near % len(members)]])

    def _remove(self, call: Waiting) -> None:
        self._calls.remove(call)
        self.load -= call.load

    def __bool__(self) -> bool:
        return bool(self._calls)
