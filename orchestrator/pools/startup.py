"""How one member of a role is started, and how it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from configs.roles.sizes import name_of
from orchestrator.pools.deadlines import CallWatch
from orchestrator.pools.member import PoolMember, quoted
from orchestrator.pools.sick import remedy
from orchestrator.pools.transport import GangSpec, MemberDied, MemberSick, Transport

STOP_SECONDS = 15.0  # for a member to stop by itself

Admit = Callable[[PoolMember], Awaitable[None]]
Spec = Callable[[int], GangSpec]  # of a member, by its number


class RoleFailed(Exception):
    """A role cannot do its work. Quotes the log of the member that died, where there is one."""


class DiedStarting(RoleFailed):
    """A member died before it served."""


@dataclass
class Startup:
    """Starts and stops members. `spec(number)` describes member `number`, `kinds[kind](number)` one of a kind; `logs`
    is the folder of its log file; `admit` loads the current weights; `starting` is held while an engine starts."""

    role: str
    transport: Transport
    spec: Spec
    watch: CallWatch
    starts_alone: bool = True  # False for ranks: whoever knows where they meet calls their `start`
    logs: Path | None = None
    admit: Admit | None = None
    starting: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    kinds: Mapping[str, Spec] = field(default_factory=dict)

    def spec_of(self, member: PoolMember) -> GangSpec:
        """What a member is made of."""
        return (self.kinds[member.kind] if member.kind else self.spec)(member.number)

    async def run(self, member: PoolMember) -> None:
        """Spawn a member's actors, start its engine and admit it. Raises what ended it; its actors are not killed."""
        member.log = self._log_of(member)
        member.actors = await self.transport.spawn(self.spec_of(member))
        member.node = self.transport.node(member.actors[0])
        await self._attach_logs(member)
        if self.starts_alone:
            await self._start(member)
        if self.admit:
            await self.admit(member)

    async def renew(self, member: PoolMember) -> None:
        """Give a member that served an earlier run this run's log, and let it forget that run. Raises what ended it."""
        member.log = self._log_of(member)
        await self._attach_logs(member)
        calls = [self.transport.call(actor, "renew")[0] for actor in member.actors]
        await self.watch.in_time("start", asyncio.gather(*(self.transport.value(call) for call in calls)))

    async def died(self, member: PoolMember, death: MemberDied) -> DiedStarting:
        """The error of a member that died in `run`."""
        out_of_memory = isinstance(death, MemberSick) and death.fault == "memory"
        what = f"{death}; {remedy(name_of(self.role, member.kind))}" if out_of_memory else str(death)
        return DiedStarting(f"{self.role}-{member.number} died while starting: {what}{await quoted(member.log)}")

    async def stop(self, member: PoolMember) -> None:
        """Call `stop` on a member's actors. Raises if they do not answer within STOP_SECONDS."""
        stops = [self.transport.call(actor, "stop")[0] for actor in member.actors]
        await asyncio.wait_for(asyncio.gather(*(self.transport.value(s) for s in stops)), STOP_SECONDS)

    def _log_of(self, member: PoolMember) -> Path | None:
        return self.logs / f"{self.role}-{member.number}.log" if self.logs else None

    async def _attach_logs(self, member: PoolMember) -> None:
        """The first call to the actors: it also waits for their imports and constructors."""
        if member.log is None:
            return
        several, log = len(member.actors) > 1, member.log
        paths = [log.with_suffix(f".rank{rank}.log") if several else log for rank in range(len(member.actors))]
        calls = [
            self.transport.call(actor, "attach_log", str(path))[0]
            for actor, path in zip(member.actors, paths, strict=True)
        ]
        await self.watch.in_time("start", asyncio.gather(*(self.transport.value(call) for call in calls)))

    async def _start(self, member: PoolMember) -> None:
        async with self.starting():
            await self.watch.in_time("start", self.transport.value(self.transport.call(member.lead, "start")[0]))
            member.started = True
