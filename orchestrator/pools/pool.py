"""The pool of one role: sends each call to a member, within its deadline, and replaces a member that dies under it.

A call goes to the least-loaded member if it is free, or waits in line. Where members' bounds differ, the least loaded
is the one that has used the smallest share of its bound. A call that is not answered within its deadline counts as its
member's death. The deadline counts from when the member's earlier calls are answered, so a full queue is no hang.
`membership` starts and replaces the members.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from configs.roles.deadlines import Deadlines
from configs.roles.sizes import name_of
from orchestrator.pools.deadlines import CallWatch
from orchestrator.pools.member import PoolMember
from orchestrator.pools.membership import Membership
from orchestrator.pools.sick import Shortages, shortage
from orchestrator.pools.startup import RoleFailed, Spec, Startup
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.telemetry import MemberClock
from orchestrator.pools.transport import MemberDied, MemberSick, Transport, ValueLost
from orchestrator.pools.waiting import WaitingLine

# When a call has failed: after one member died under it (`once`), or after DEATHS members that answered a ping just
# before (`living`).
Patience = Literal["once", "living"]


class CallFailed(RoleFailed):
    """Every member that a call was tried on died under it."""


class Pool:
    """The members of one role and the calls to them. `listeners` are called when members or their load change. A
    call that needs a member's GPU is made inside of `turn`; see weights/scorer_turns.py."""

    def __init__(
        self,
        role: str,
        transport: Transport,
        spec: Spec,
        *,
        kinds: Mapping[str, Spec] = MappingProxyType({}),
        starts_alone: bool = True,
        logs: Path | None = None,
        deadlines: Deadlines | None = None,
        line: WaitingLine | None = None,
        hedge: float | None = None,
    ) -> None:
        """`spec`, `kinds`, `starts_alone` and `logs` as in Startup. `line` bounds each member's load. A call not
        answered after `hedge` seconds is made a second time, on another member."""
        self.role = role
        self.transport = transport
        self.watch = CallWatch(role, deadlines or Deadlines())
        self.startup = Startup(role, transport, spec, self.watch, starts_alone, logs, kinds=kinds)
        self.members = Membership(self.startup, self._members_changed)
        self.line = WaitingLine() if line is None else line  # an empty line is false
        self.clock = MemberClock()
        self.retries = 0  # calls made again, and samples asked for again
        self.alone = asyncio.Lock()  # one suspected call at a time
        self.listeners: list[Callable[[], None]] = []
        self.turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
        self._hedge = hedge
        self._shortages: dict[str, Shortages] = defaultdict(Shortages)  # by kind

    # --- calls ---

    async def call(
        self,
        method: str,
        *args: Any,
        load: int = 1,
        returns: int = 1,
        near: int | None = None,
        patience: Patience = "living",
    ) -> list[Any]:
        """Call an idempotent method on the least-loaded free member; if that one dies, on another. Calls with the
        same number `near` go to the same member while the members stay the same.

        Returns references to all results but the last, and the value of the last: [ref, ..., value]. Raises CallFailed
        when as many members died under it as its patience allows.
        """
        for attempt in range(1, DEATHS + 1):
            try:
                living = patience == "living"
                member = await (self.living(near, load) if living else self.route(near, load))
                if self._hedge is None or living:
                    return await self._answer(member, method, args, load, returns)
                return await self._first_answer(member, method, args, load, returns)
            except MemberDied as death:
                if attempt == DEATHS or patience == "once":
                    raise CallFailed(f"{self.role}: {method} failed on {attempt} members; {death}") from death
                self.retries += 1
        raise AssertionError("unreachable")

    async def call_member(self, member: PoolMember, method: str, *args: Any, deadline: str | None = None) -> Any:
        """Call a method of one member's lead and return its value, within the deadline of `method`, or of the method
        that `deadline` names. Raises MemberDied after replacing the member."""
        try:
            answer = self.transport.value(self.transport.call(member.lead, method, *args)[0])
            return await self.watch.in_time(deadline or method, answer)
        except MemberDied as death:
            if member.serving:  # Membership reports the death of a joining member
                self._lose(member, method, member.load, death)
            raise

    async def stream(
        self, member: PoolMember, method: str, *args: Any, since: Callable[[], float | None] | None = None
    ) -> AsyncIterator[tuple[Any, Any]]:
        """Yield what a generator method of one member yields: references to payloads, with their headers. Raises
        MemberDied after replacing the member.

        The deadline of each item counts from the request for it, or from the time that `since` returns. While `since`
        returns None, no deadline runs.
        """
        pairs = aiter(self.transport.stream(member.lead, method, *args))
        try:
            while (pair := await self.watch.in_time(method, anext(pairs, None), since)) is not None:
                self._note_answer(member, method, member.load)
                yield pair
        except MemberDied as death:
            self._lose(member, method, member.load, death, idle=not member.load)
            raise
        finally:
            await pairs.aclose()  # type: ignore[attr-defined]

    async def _answer(self, member: PoolMember, method: str, args: Any, load: int, returns: int) -> list[Any]:
        """Call a member to which `load` is already added."""
        try:
            with member.owing():
                async with self.turn():
                    with member.in_flight() as since:
                        refs = self.transport.call(member.lead, method, *args, returns=returns)
                        value = await self.watch.in_time(method, self.transport.value(refs[-1]), since)
            self._note_answer(member, method, load)
            return [*refs[:-1], value]
        except MemberDied as death:
            self._lose(member, method, load, death)
            raise
        finally:
            self.remove_load(member, load)

    async def _first_answer(self, first: PoolMember, method: str, args: Any, load: int, returns: int) -> list[Any]:
        """Call a member and, after the hedge's seconds, a second one; return the first answer. The slower call keeps
        its load and its deadline, since its member may hang."""
        asked = {asyncio.ensure_future(self._answer(first, method, args, load, returns))}
        try:
            done, _ = await asyncio.wait(asked, timeout=self._hedge)
            second = None if done else self.line.free([m for m in self.members.serving() if m is not first])
            if second:
                self.add_load(second, load)
                asked.add(asyncio.ensure_future(self._answer(second, method, args, load, returns)))
            while True:
                done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                good = [task for task in done if not task.exception()]
                if good or not waiting:
                    for task in waiting:
                        self.members.in_background(_ignored(task))
                    return (good or list(done))[0].result()
                asked = waiting
        except asyncio.CancelledError:
            for task in asked:
                task.cancel()
            raise

    def _note_answer(self, member: PoolMember, method: str, load: int) -> None:
        self.members.note_answer()
        self._shortages[member.kind].answered(method, load)

    def _lose(self, member: PoolMember, method: str, load: int, death: MemberDied, idle: bool = False) -> None:
        """Replace a member that died in a call, or `idle`. Raises RoleFailed if work of this size ran out of memory too
        often."""
        self.members.replace(member, death, idle)
        short = isinstance(death, MemberSick) and death.fault == "memory"
        if short and self._shortages[member.kind].note(method, load):
            raise RoleFailed(shortage(name_of(self.role, member.kind), method, str(death))) from death

    # --- routes ---

    async def route(self, near: int | None = None, load: int = 0) -> PoolMember:
        """Wait for the least-loaded free member that serves, or for the one that `near` stands for, and add `load` to
        it. Raises the role's failure if none can come."""
        if not (members := self.members.serving()):
            self.members.check()
        if member := self.line.at_once(members, near):
            self.add_load(member, load)
            return member
        call = self.line.join(near, load)
        self._hand_out()
        try:
            return await call.place
        except asyncio.CancelledError:
            self.line.leave(call)
            if call.given:  # in this very iteration of the event loop
                self.remove_load(call.place.result(), load)
            raise

    async def living(self, near: int | None = None, load: int = 0) -> PoolMember:
        """Route to a member that answers a ping; one that does not is replaced."""
        while True:
            member = await self.route(near, load)
            try:
                await self.call_member(member, "ping")
            except MemberDied:
                self.remove_load(member, load)
            except BaseException:
                self.remove_load(member, load)
                raise
            else:
                return member

    def load(self) -> int:
        """Unanswered work of all members, and of the calls in line."""
        return sum(member.load for member in self.members) + self.line.load

    def oldest_call(self, now: float) -> float:
        """Age of the oldest unanswered call that a member has, seconds; 0 without one. Calls in line are younger."""
        return max((now - since for m in self.members if (since := m.waits_since) is not None), default=0.0)

    def add_load(self, member: PoolMember, load: int) -> None:
        if load and not member.load and not member.asleep:
            self.clock.begin(member.number)
        member.load += load

    def remove_load(self, member: PoolMember, load: int) -> None:
        """Take answered or lost work off a member, and give it to the calls in line if it is free. Whoever waits for
        free slots hears of it: a stage and an evaluation lease to the same members."""
        member.load -= load
        if load and not member.load and not member.asleep:
            self.clock.end(member.number)
        if self.line:
            self._hand_out()
        self._notify()

    def note_asleep(self, member: PoolMember, asleep: bool) -> None:
        """A member sleeps now, or is awake. Asleep it is not busy, whatever waits for it."""
        if member.load and asleep != member.asleep:
            (self.clock.end if asleep else self.clock.begin)(member.number)
        member.asleep = asleep

    def _hand_out(self) -> None:
        """Give free members to the calls in line."""
        while self.line and (found := self.line.next(self.members.serving())):
            call, member = found
            if not call.place.cancelled():
                self.add_load(member, call.load)
                call.place.set_result(member)

    def _members_changed(self) -> None:
        self._hand_out()
        if self.members.failure and not self.members.serving():
            self.line.refuse(self.members.failure)
        self._notify()

    def _notify(self) -> None:
        for listener in self.listeners:
            listener()


async def _ignored(answer: asyncio.Future[Any]) -> None:
    """Await an answer that is no longer needed. If its member dies, `_answer` has replaced it."""
    with suppress(MemberDied, ValueLost):
        await answer
