"""A pool of one role: spawn, route, retry, replace, scale.

A member is a head and its further actors; the death of any is the death of the member, and so is a call that is not
answered within its deadline, which counts from when those that the member was given before are answered: a queue is no
hang. Calls that find no member with room wait here, first come first served. A member serves only after `admit` has
brought it up to date. What a call returns decides nothing here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.roles import Deadlines
from orchestrator.pools.member import PoolMember
from orchestrator.pools.sick import Shortages, remedy, shortage
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.telemetry import MemberClock
from orchestrator.pools.transport import GangSpec, MemberDied, MemberSick, NoPlace, Transport, ValueLost
from orchestrator.pools.waiting import WaitingLine
from orchestrator.pools.watch import Overdue, Watch

DEATHS_IN_A_ROW = 12  # deaths in a row, with no answer between them, that end a role

# How many members may die under a call before it has failed: as many as make DEATHS (`retry`), one (`once`), or as many
# as make DEATHS of those that lived when they were asked (`living`).
Patience = Literal["retry", "once", "living"]


class RoleFailed(Exception):
    """A role cannot do its work: said with the last lines of the log of the member that died."""


class DiedStarting(RoleFailed):
    """A member died before it served."""


class CallFailed(RoleFailed):
    """Every member that a call was tried on died under it."""


Admit = Callable[[PoolMember], Awaitable[None]]


@dataclass
class Pool:
    """`spec(number)` says what member `number` is made of; `logs` is the folder of its log file."""

    role: str
    transport: Transport
    spec: Callable[[int], GangSpec]
    starts_alone: bool = True  # ranks that must meet are started by whoever knows where
    logs: Path | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    line: WaitingLine = field(default_factory=WaitingLine)  # of calls for which no member has room
    hedge: float | None = None  # seconds after which a call is made a second time, on another member
    clock: MemberClock = field(default_factory=MemberClock)
    watch: Watch = field(default_factory=Watch)
    shortages: Shortages = field(default_factory=Shortages)  # of memory
    admit: Admit | None = None
    starting: Callable[[], AbstractAsyncContextManager[None]] = nullcontext  # held while a member starts
    listeners: list[Callable[[], None]] = field(default_factory=list)  # told when members or their load change
    notice: Callable[[str], None] = lambda text: None
    restarts: int = 0
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)  # one suspected call at a time
    members: list[PoolMember] = field(default_factory=list)
    changes: int = 0  # how often members came, or are to be given work again
    _numbers: int = 0
    _background: set[asyncio.Task[Any]] = field(default_factory=set)
    _failure: Exception | None = None
    _over: Exception | None = None
    _deaths_in_a_row: int = 0  # deaths since the last answer

    async def start(self, size: int) -> None:
        """Bring up `size` members at once; one that dies on the way is brought up once more. Raises what the first
        failure raised, and then there are none."""
        joining = [asyncio.ensure_future(self._bring_up(self._new())) for _ in range(size)]
        try:
            await asyncio.gather(*joining)
        except BaseException:
            for task in joining:
                task.cancel()
            await asyncio.gather(*joining, return_exceptions=True)
            await self.discard()
            raise

    async def stop(self, at_once: bool = False) -> None:
        """Let every member release what it holds, unless it is `at_once`, then end its processes."""
        for task in self._background:
            task.cancel()
        members, self.members = self.members, []
        await asyncio.gather(
            *(self.transport.kill(member.actors) if at_once else self._end(member) for member in members)
        )

    async def resize(self, size: int) -> None:
        """Scale to `size` members: joiners serve when admitted, leavers finish what they have. The last call decides:
        it calls off joiners before it lets a serving member go. A joiner that dies is brought up once more."""
        staying = [m for m in self.members if not m.leaving]
        surplus = max(0, len(staying) - size)
        for member in sorted(staying, key=lambda m: (m.serving, m.load, -m.number))[:surplus]:
            if member.serving:
                self._spawn_task(self._leave(member))
            else:
                self.members.remove(member)
                if member.joining:
                    member.joining.cancel()
            member.serving, member.leaving = False, True
        await asyncio.gather(*(self._bring_up(self._new()) for _ in range(size - len(staying))))

    def serving(self) -> list[PoolMember]:
        return [member for member in self.members if member.serving and not member.apart]

    def active(self) -> list[PoolMember]:
        """Members that serve, and leavers that have something to finish."""
        return [member for member in self.members if member.serving or (member.leaving and member.load)]

    @asynccontextmanager
    async def apart(self, member: PoolMember) -> AsyncIterator[None]:
        """A member that has finished what it had, and is given nothing new meanwhile. Raises MemberDied if it is gone
        by then."""
        member.apart += 1
        try:
            while member.load:
                await asyncio.sleep(0.05)
            if member not in self.members:
                raise MemberDied(f"{self.role}-{member.number} is gone")
            yield
        finally:
            member.apart -= 1
            self._wake()

    @contextmanager
    def kept_back(self, member: PoolMember) -> Iterator[None]:
        """A member that goes on with what it has, and is given nothing new meanwhile."""
        member.apart += 1
        try:
            yield
        finally:
            member.apart -= 1
            self._wake()

    def load(self) -> int:
        """What all members have been given and have not answered yet, and what waits for one of them."""
        return sum(member.load for member in self.members) + self.line.load

    async def call(
        self,
        method: str,
        *args: Any,
        load: int = 1,
        returns: int = 1,
        near: int | None = None,
        patience: Patience = "retry",
    ) -> list[Any]:
        """Call an idempotent method on the least-loaded member that has room, and on another if that one dies. Calls
        with the same number `near` go to the same member as long as members stay the same.

        Returns references to all results but the last, and the value of the last: [ref, ..., value]. Raises CallFailed
        when as many members died under it as its patience allows.
        """
        for attempt in range(1, DEATHS + 1):
            try:
                living = patience == "living"
                member = await (self.living(near, load) if living else self.route(near, load))
                if self.hedge is None or living:
                    return await self._answer(member, method, args, load, returns)
                return await self._first_answer(member, method, args, load, returns)
            except MemberDied as death:
                if attempt == DEATHS or patience == "once":
                    raise CallFailed(f"{self.role}: {method} failed on {attempt} members; {death}") from death
        raise AssertionError("unreachable")

    def add_load(self, member: PoolMember, places: int) -> None:
        """Count work as a member's load."""
        if places and not member.load:
            self.clock.begin(member.number)
        member.load += places

    def remove_load(self, member: PoolMember, places: int) -> None:
        """Some of a member's work is done, or lost."""
        member.load -= places
        if places and not member.load:
            self.clock.end(member.number)
        if self.line:
            self._hand_out()

    async def stream(
        self, member: PoolMember, method: str, *args: Any, since: Callable[[], float | None] | None = None
    ) -> AsyncIterator[tuple[Any, Any]]:
        """What a generator method of one member yields, as references to payloads with their headers. Raises
        MemberDied; the member is replaced.

        The deadline of each counts from when it is asked for, or from what `since` says; where that says None, nothing
        is owed and there is none.
        """
        pairs = aiter(self.transport.stream(member.lead, method, *args))
        try:
            while (pair := await self.in_time(method, anext(pairs, None), since)) is not None:
                self._deaths_in_a_row = 0
                self.shortages.answered(method, member.load)
                yield pair
        except MemberDied as death:
            size = member.load
            self.replace(member, death)
            self._note_shortage(method, size, death)
            raise
        finally:
            await pairs.aclose()  # type: ignore[attr-defined]

    async def call_member(self, member: PoolMember, method: str, *args: Any, deadline: str | None = None) -> Any:
        """Call a method of one member's head and open the result, within the method's own deadline or the one named.
        Raises MemberDied; the member is replaced."""
        try:
            answer = self.transport.value(self.transport.call(member.lead, method, *args)[0])
            return await self.in_time(deadline or method, answer)
        except MemberDied as death:
            if member.serving:  # a joiner's death is its pool's to tell
                self.replace(member, death)
                self._note_shortage(method, member.load, death)
            raise

    async def _answer(self, member: PoolMember, method: str, args: Any, load: int, returns: int) -> list[Any]:
        """A member's answer to a call whose load is counted already."""
        try:
            with member.asked() as since:
                refs = self.transport.call(member.lead, method, *args, returns=returns)
                value = await self.in_time(method, self.transport.value(refs[-1]), since)
            self._deaths_in_a_row = 0
            self.shortages.answered(method, load)
            return [*refs[:-1], value]
        except MemberDied as death:
            self.replace(member, death)
            self._note_shortage(method, load, death)
            raise
        finally:
            self.remove_load(member, load)
            self._tell()

    async def _first_answer(self, first: PoolMember, method: str, args: Any, load: int, returns: int) -> list[Any]:
        """A member's answer or, if it takes longer than `hedge` seconds, that of another beside it, whichever comes
        first. Who is slower keeps its load and its deadline: it may hang."""
        asked = {asyncio.ensure_future(self._answer(first, method, args, load, returns))}
        try:
            done, _ = await asyncio.wait(asked, timeout=self.hedge)
            second = None if done else self.line.with_room([m for m in self.serving() if m is not first])
            if second:
                self.add_load(second, load)
                asked.add(asyncio.ensure_future(self._answer(second, method, args, load, returns)))
            while True:
                done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                good = [task for task in done if not task.exception()]
                if good or not waiting:
                    for task in waiting:
                        self._spawn_task(_awaited(task))
                    return (good or list(done))[0].result()
                asked = waiting
        except asyncio.CancelledError:
            for task in asked:
                task.cancel()
            raise

    async def in_time(
        self, method: str, answer: Awaitable[Any], since: Callable[[], float | None] | None = None
    ) -> Any:
        """An answer within its deadline, which counts from now or from what `since` says; a member that gives none
        hangs, and is as good as dead. Raises MemberDied."""
        seconds = self.deadlines.of(method)
        try:
            return await self.watch.within(seconds, answer, since)
        except Overdue:
            raise MemberDied(f"{self.role} gave no answer to {method} in {seconds:g} s (see deadlines)") from None

    def _note_shortage(self, method: str, size: int, death: MemberDied) -> None:
        """Count a member that ran out of memory. Raises RoleFailed where work of one size does so again and again."""
        if isinstance(death, MemberSick) and death.fault == "memory" and self.shortages.note(method, size):
            raise RoleFailed(shortage(self.role, method, str(death))) from death

    def check(self) -> None:
        """Raise what kept a replacement from starting, once no member is left or on its way, or that all die."""
        if self._failed:
            raise self._failed

    async def fail(self, error: Exception) -> None:
        """The role has failed for good: end all members, and tell everybody who asks for one."""
        self._over = error
        await self.discard()
        self._wake()

    @property
    def newest(self) -> int:
        """The number that the next member will have."""
        return self._numbers

    @property
    def _failed(self) -> Exception | None:
        if self._over:
            return self._over
        return self._failure if not self.members or self._deaths_in_a_row >= DEATHS_IN_A_ROW else None

    async def route(self, near: int | None = None, load: int = 0) -> PoolMember:
        """The least-loaded serving member, or the one for a number, once it has room: `load` is counted as its own from
        then on. Raises RoleFailed if none comes."""
        if not (members := self.serving()):
            self.check()
        if member := self.line.at_once(members, near):
            self.add_load(member, load)
            return member
        call = self.line.join(near, load)
        self._hand_out()
        try:
            return await call.place
        except asyncio.CancelledError:
            self.line.leave(call)
            if call.given:  # in this very turn
                self.remove_load(call.place.result(), load)
            raise

    async def living(self, near: int | None = None, load: int = 0) -> PoolMember:
        """A member, as `route` finds it, that has just answered; one that does not is replaced."""
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

    def _hand_out(self) -> None:
        """Give calls that wait to members with room."""
        while self.line and (found := self.line.next(self.serving())):
            call, member = found
            if not call.place.cancelled():
                self.add_load(member, call.load)
                call.place.set_result(member)

    def _new(self, dead: PoolMember | None = None) -> PoolMember:
        """A member that is to join. It counts at once, so that a resize meanwhile asks for no other in its place."""
        member = PoolMember(self._numbers, place=self._numbers)
        if dead:
            member.restarts, member.place = dead.restarts + 1, dead.place
        self._numbers += 1
        self.members.append(member)
        return member

    async def _join(self, member: PoolMember) -> None:
        if member.leaving:  # called off before it began
            return
        member.joining = asyncio.current_task()
        name = f"{self.role}-{member.number}"
        member.log = self.logs / f"{name}.log" if self.logs else None
        try:
            member.actors = await self.transport.spawn(self.spec(member.number))
            member.node = self.transport.node(member.actors[0])
            await self._attach_logs(member)
            if self.starts_alone:
                await self._start(member)
            if self.admit:
                await self.admit(member)
        except BaseException as error:
            if member in self.members:
                self.members.remove(member)
            await self.transport.kill(member.actors)
            if member.leaving:  # called off: nobody waits for it any more
                return
            if isinstance(error, MemberDied):
                short = isinstance(error, MemberSick) and error.fault == "memory"
                what = f"{error}; {remedy(self.role)}" if short else str(error)
                raise DiedStarting(f"{name} died while starting: {what}{await quoted(member.log)}") from error
            raise
        member.serving, member.joining = True, None
        self._failure = None
        self._wake()

    async def _bring_up(self, member: PoolMember) -> None:
        """What kills a member as it starts may be its machine's fault, once."""
        try:
            await self._join(member)
        except DiedStarting as death:
            self.notice(f"{death}\n  it is started once more")
            self.restarts += 1
            await self._join(self._new(member))

    async def _attach_logs(self, member: PoolMember) -> None:
        """The first call of all: it waits for the actors' imports and constructors."""
        if member.log is None:
            return
        several, log = len(member.actors) > 1, member.log
        paths = [log.with_suffix(f".rank{rank}.log") if several else log for rank in range(len(member.actors))]
        calls = [
            self.transport.call(actor, "attach_log", str(path))[0]
            for actor, path in zip(member.actors, paths, strict=True)
        ]
        await self.in_time("start", asyncio.gather(*(self.transport.value(call) for call in calls)))

    async def _start(self, member: PoolMember) -> None:
        async with self.starting():
            await self.in_time("start", self.transport.value(self.transport.call(member.lead, "start")[0]))
            member.started = True

    def replace(self, member: PoolMember, death: Exception | None = None) -> None:
        """Take a member out, end it, and bring up another in the background."""
        if member not in self.members:
            return
        self.members.remove(member)
        member.serving = False
        if member.leaving:
            self._spawn_task(self.transport.kill(member.actors))
            return
        why = f" ({death})" if death else ""
        self._spawn_task(self._say_gone(member, why))
        self._succeed(member, why)

    async def _say_gone(self, member: PoolMember, why: str) -> None:
        log = await quoted(member.log)
        self.notice(f"{self.role}-{member.number} is gone and is being replaced{why}{log}")

    def _succeed(self, dead: PoolMember, why: str) -> None:
        """Count a death, and bring up another member unless all die."""
        self.restarts += 1
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= DEATHS_IN_A_ROW:
            self._failure = RoleFailed(
                f"{self.role}: {DEATHS_IN_A_ROW} members died one after the other without an answer{why}"
            )
            self._spawn_task(self.transport.kill(dead.actors))
            self._wake()
            return
        self._spawn_task(self._rejoin(dead, self._new(dead)))

    async def discard(self) -> None:
        """End all members without asking them, and bring up none."""
        members, self.members = self.members, []
        for member in members:
            member.serving = False
            await self.transport.kill(member.actors)

    async def _rejoin(self, dead: PoolMember, successor: PoolMember) -> None:
        await self.transport.kill(dead.actors)
        await self._take_place(successor)

    async def _take_place(self, successor: PoolMember) -> None:
        try:
            await self._join(successor)
        except DiedStarting as death:
            self.notice(str(death))
            self._succeed(successor, f" ({death})")
        except NoPlace as error:
            if not self.serving():
                self._give_up(error)
                return
            self.notice(f"{error}; it is tried again, and {len(self.serving())} go on")  # a node may come back
            again = self._new(successor)
            again.restarts = successor.restarts
            self._spawn_task(self._take_place(again))
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """A member is not replaced. Where it was the last, the role has failed."""
        self._failure = error
        self.notice(f"{self.role}: no replacement could be started: {error}")
        self._wake()

    async def _leave(self, member: PoolMember) -> None:
        while member.load:
            await asyncio.sleep(0.05)
        if member in self.members:
            self.members.remove(member)
            await self._end(member)

    async def _end(self, member: PoolMember) -> None:
        try:
            stops = [self.transport.call(actor, "stop")[0] for actor in member.actors]
            await asyncio.wait_for(asyncio.gather(*(self.transport.value(s) for s in stops)), 15.0)
        except Exception as error:  # it ends below in any case
            self.notice(f"{self.role}-{member.number} did not stop by itself: {error or type(error).__name__}")
        await self.transport.kill(member.actors)

    def _spawn_task(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()

    def _wake(self) -> None:
        """Members are others than before: who waits for one is told."""
        self.changes += 1
        self._hand_out()
        if self._failed and not self.serving():
            self.line.refuse(self._failed)
        self._tell()


async def _awaited(answer: asyncio.Future[Any]) -> None:
    """An answer that nobody needs any more; a member that dies of it is replaced by then."""
    with suppress(MemberDied, ValueLost):
        await answer


async def quoted(log: Path | None) -> str:
    """The last lines of a member's log, to be read under an error."""
    return await asyncio.to_thread(quote_log, log) if log else ""


def quote_log(log: Path, lines: int = 20) -> str:
    """The last lines of a log, of its last 16 KiB: it may be long."""
    files = [log] if log.exists() else sorted(log.parent.glob(f"{log.stem}.rank*.log"))
    return "".join(
        f"\n  --- last lines of {file} ---\n  " + "\n  ".join(_tail(file).splitlines()[-lines:]) for file in files[:1]
    )


def _tail(file: Path, size: int = 16 * 2**10) -> str:
    with file.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - size))
        return log.read().decode(errors="replace")
