"""The members of one role: start, join, replace, resize, leave.

A member is a lead and its further actors; if one actor dies, the member is replaced. A member that dies while it starts
is started once more. A role fails when no replacement can be started, or when DEATHS_IN_A_ROW members die without an
answer between them. A serving member that dies without work does not count: it failed at nothing.

A replacement is of the kind of the member that it replaces. Only the number of the role's own members changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from types import MappingProxyType
from typing import Any, overload

from orchestrator.placement.on_ray import NoPlace
from orchestrator.pools.member import PoolMember, quoted
from orchestrator.pools.startup import DiedStarting, RoleFailed, Startup
from orchestrator.pools.transport import MemberDied

DEATHS_IN_A_ROW = 12
POLL_SECONDS = 0.05  # between looks at a member that finishes its work


class Membership(Sequence[PoolMember]):
    """Members that join, serve or leave, oldest first. `on_change` is called when members come, go or are given work
    again; `restarts` counts deaths, and `changes` the calls of `on_change`."""

    def __init__(self, startup: Startup, on_change: Callable[[], None]) -> None:
        self.startup = startup
        self.notice: Callable[[str], None] = lambda text: None
        self.restarts = 0
        self.changes = 0
        self.newest = 0  # the number that the next member gets
        self._on_change = on_change
        self._role = startup.role
        self._transport = startup.transport
        self._members: list[PoolMember] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._ending: set[PoolMember] = set()  # gone from the role, and their processes not yet ended
        self._start_failure: Exception | None = None  # why the last replacement did not start
        self._final_failure: Exception | None = None
        self._deaths_in_a_row = 0  # since the last answer

    # --- who is there ---

    @overload
    def __getitem__(self, index: int) -> PoolMember: ...
    @overload
    def __getitem__(self, index: slice) -> list[PoolMember]: ...
    def __getitem__(self, index: int | slice) -> PoolMember | list[PoolMember]:
        return self._members[index]

    def __iter__(self) -> Iterator[PoolMember]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def serving(self) -> list[PoolMember]:
        """Members that may be given work."""
        return [member for member in self if member.serving and not member.apart]

    def active(self) -> list[PoolMember]:
        """Members that serve, and leaving members with unfinished work."""
        return [member for member in self if member.serving or (member.leaving and member.load)]

    # --- start, resize, stop ---

    async def start(self, size: int, kinds: Mapping[str, int] = MappingProxyType({})) -> None:
        """Start `size` members of the role's own and those of its `kinds` at once. If one fails, end all and raise the
        first error."""
        wanted = [kind for kind, members in {"": size, **kinds}.items() for _ in range(members)]
        joining = [asyncio.ensure_future(self._join_twice(self._add(kind))) for kind in wanted]
        try:
            await asyncio.gather(*joining)
        except BaseException:
            for task in joining:
                task.cancel()
            await asyncio.gather(*joining, return_exceptions=True)
            await self.discard()
            raise

    async def take_over(self, left: Sequence[PoolMember]) -> None:
        """Serve with the actors of another pool, made of the same, once they have forgotten its run. If one does not,
        all are ended, and there are none."""
        taken = [self._add(other.kind) for other in left]
        for member, other in zip(taken, left, strict=True):
            member.actors, member.node = other.actors, other.node
            member.started, member.asleep = other.started, other.asleep
        renewed = await asyncio.gather(*(self.startup.renew(m) for m in taken), return_exceptions=True)
        if any(isinstance(answer, BaseException) for answer in renewed):
            await self.discard()
            return
        for member in taken:
            member.serving = True
        self._changed()

    async def resize(self, size: int) -> None:
        """Scale to `size` members of the role's own. New members serve once admitted; surplus members finish their work
        first. The last call wins. Joining members are cancelled before serving ones are removed."""
        staying = [m for m in self if not m.leaving and not m.kind]
        surplus = max(0, len(staying) - size)
        for member in sorted(staying, key=lambda m: (m.serving, m.load, -m.number))[:surplus]:
            if member.serving:
                self.in_background(self._leave(member))
            else:
                self._members.remove(member)
                if member.joining:
                    member.joining.cancel()
            member.serving, member.leaving = False, True
        await asyncio.gather(*(self._join_twice(self._add()) for _ in range(size - len(staying))))

    async def stop(self, at_once: bool = False) -> None:
        """Stop all members and end their processes; with `at_once`, end the processes right away."""
        for task in self._background:
            task.cancel()
        members, self._members = self._members, []
        await asyncio.gather(
            *(self._transport.kill(member.actors) if at_once else self._end(member) for member in members)
        )

    async def discard(self) -> None:
        """End all members at once, and start no others."""
        members, self._members = self._members, []
        for member in members:
            member.serving = False
            await self._transport.kill(member.actors)

    # --- hold back work ---

    @asynccontextmanager
    async def apart(self, member: PoolMember) -> AsyncIterator[None]:
        """Wait until a member has finished its work, and give it none meanwhile. Raises MemberDied if it is gone by
        then."""
        with self.kept_back(member):
            while member.load:
                await asyncio.sleep(POLL_SECONDS)
            if member not in self:
                raise MemberDied(f"{self._role}-{member.number} is gone")
            yield

    @contextmanager
    def kept_back(self, member: PoolMember) -> Iterator[None]:
        """Give a member no new work meanwhile; it goes on with what it has."""
        member.apart += 1
        try:
            yield
        finally:
            member.apart -= 1
            self._changed()

    # --- deaths and failure ---

    def replace(self, member: PoolMember, death: Exception | None = None, idle: bool = False) -> None:
        """Remove a member, kill it, and start another in the background. Does nothing for a member already removed.
        `idle`: it died without work, which says nothing about the members after it."""
        if member not in self:
            return
        self._members.remove(member)
        member.serving = False
        self._ending.add(member)
        if member.leaving:
            self.in_background(self._kill(member))
            return
        why = f" ({death})" if death else ""
        self.in_background(self._report_death(member, why))
        self._succeed(member, why, idle)

    def note_answer(self) -> None:
        """A member answered: deaths in a row count from zero again."""
        self._deaths_in_a_row = 0

    @property
    def failure(self) -> Exception | None:
        """Why the role has failed; None while it has not."""
        if self._final_failure:
            return self._final_failure
        return self._start_failure if not self or self._deaths_in_a_row >= DEATHS_IN_A_ROW else None

    def check(self) -> None:
        """Raise the role's failure, if it has failed."""
        if self.failure:
            raise self.failure

    async def fail(self, error: Exception) -> None:
        """End the role for good: kill all members, and raise `error` to every caller."""
        self._final_failure = error
        await self.discard()
        self._changed()

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run work in a task that `stop` cancels."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- join ---

    def _add(self, kind: str = "") -> PoolMember:
        """A member that will join. It counts at once, so that a resize does not start another."""
        taken = {member.place for member in self}
        member = PoolMember(self.newest, kind, place=next(place for place in count() if place not in taken))
        self.newest += 1
        self._members.append(member)
        return member

    def _add_successor(self, dead: PoolMember) -> PoolMember:
        """A member that will join in the place of a dead one, or in a free one if that was taken meanwhile."""
        taken = any(member.place == dead.place for member in self)
        member = self._add(dead.kind)
        member.restarts = dead.restarts + 1
        if not taken:
            member.place = dead.place
        return member

    async def _join(self, member: PoolMember) -> None:
        if member.leaving:  # a resize cancelled it before it began
            return
        member.joining = asyncio.current_task()
        try:
            await self.startup.run(member)
        except BaseException as error:
            if member in self:
                self._members.remove(member)
            await self._kill(member)
            if member.leaving:  # cancelled by a resize, which needs no error
                return
            if isinstance(error, MemberDied):
                raise await self.startup.died(member, error) from error
            raise
        member.serving, member.joining = True, None
        self._start_failure = None
        self._changed()

    async def _join_twice(self, member: PoolMember) -> None:
        """Join; on death, once more: the first death may be the machine's fault."""
        try:
            await self._join(member)
        except DiedStarting as death:
            self.notice(f"{death}\n  it is started once more")
            self.restarts += 1
            await self._join(self._add_successor(member))

    # --- replace ---

    async def _report_death(self, member: PoolMember, why: str) -> None:
        log = await quoted(member.log)
        self.notice(f"{self._role}-{member.number} is gone and is being replaced{why}{log}")

    def _succeed(self, dead: PoolMember, why: str, idle: bool = False) -> None:
        """Count a death, and start a successor unless too many died in a row."""
        self.restarts += 1
        self._deaths_in_a_row += not idle
        if self._deaths_in_a_row >= DEATHS_IN_A_ROW:
            self._start_failure = RoleFailed(
                f"{self._role}: {DEATHS_IN_A_ROW} members died one after the other without an answer{why}"
            )
            self.in_background(self._kill(dead))
            self._changed()
            return
        self.in_background(self._kill_and_join(dead, self._add_successor(dead)))

    async def _kill_and_join(self, dead: PoolMember, successor: PoolMember) -> None:
        await self._kill(dead)
        await self._join_as_successor(successor)

    async def _join_as_successor(self, successor: PoolMember) -> None:
        try:
            await self._join(successor)
        except DiedStarting as death:
            self.notice(str(death))
            self._succeed(successor, f" ({death})")
        except NoPlace as error:
            others = [member for member in self if member.actors and not member.leaving]  # they have a place
            if not others:
                self._give_up(error)
                return
            # a node may come back
            self.notice(f"{error}; it is tried again, and {len(others)} go on")
            again = self._add_successor(successor)
            again.restarts = successor.restarts
            self.in_background(self._join_as_successor(again))
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Do not replace a member. If it was the last one, the role has failed."""
        self._start_failure = error
        self.notice(f"{self._role}: no replacement could be started: {error}")
        self._changed()

    # --- leave ---

    async def _leave(self, member: PoolMember) -> None:
        while member.load:
            await asyncio.sleep(POLL_SECONDS)
        if member in self:
            self._members.remove(member)
            await self._end(member)

    async def vacated(self) -> None:
        """Wait until members that are gone have ended: what they held of a GPU is free then."""
        while self._ending:
            await asyncio.sleep(POLL_SECONDS)

    async def _end(self, member: PoolMember) -> None:
        self._ending.add(member)
        try:
            await self.startup.stop(member)
        except Exception as error:  # it is killed below in any case
            self.notice(f"{self._role}-{member.number} did not stop by itself: {error or type(error).__name__}")
        await self._kill(member)

    async def _kill(self, member: PoolMember) -> None:
        self._ending.add(member)
        try:
            await self._transport.kill(member.actors)
        finally:
            self._ending.discard(member)

    def _changed(self) -> None:
        self.changes += 1
        self._on_change()
