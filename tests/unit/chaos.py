"""Members that die, hang, fall sick and vanish with their nodes, drawn from a seed, in a time of its own.

`Nodes` is the in-process transport with what a real cluster adds: calls take a while, members live on nodes, and a node
takes along the payloads that its members have yielded. A sick member lives, and raises what a device, its memory or a
connection raises. `Chaos` strikes again and again while a run goes on.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from actors.simulated.rollout import SimulatedRollout
from actors.wire.records import Request, Sample, unpack_samples
from configs.schema import Recipe
from orchestrator.evaluation.heldout import HELDOUT_INDEX
from orchestrator.pools.member import PoolMember
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.transport import GangSpec, LocalTransport, MemberDied, ValueLost, _Box
from orchestrator.run import REBUILDS, Run
from tests.unit.own_time import in_own_time
from tests.unit.simulation import Simulation

FAULTS: tuple[Exception, ...] = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:2010, remote process exited"),
    RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2345"),
)
SECONDS = {"step": 0.5, "publish": 0.2, "save": 0.3, "restore": 0.3, "load": 0.1, "start": 1.0}  # at most


@dataclass(frozen=True, eq=False)
class _Held(_Box):
    """A value as Ray keeps it: a payload in the store of its node, where `misses` counts who comes too late; small
    values with the orchestrator."""

    home: Any = None
    lost: set[int] = field(default_factory=set)  # homes by id
    misses: list[Any] = field(default_factory=list)

    async def opened(self) -> Any:
        value = await super().opened()
        if id(self.home) in self.lost and isinstance(value, pa.RecordBatch | np.ndarray):
            self.misses.append(self.home)
            raise ValueLost("went down with its node")
        return value


class Nodes(LocalTransport):
    def __init__(self, rng: random.Random, count: int = 3) -> None:
        super().__init__()
        self._rng = rng
        self.count = count
        self._node: dict[int, int] = {}  # by id of the actor
        self._lost: set[int] = set()
        self._hung: set[int] = set()
        self.faults: dict[int, Exception] = {}  # by id of the actor: what it is to raise
        self.misses: list[Any] = []  # values that were wanted and lost
        self.spawned: dict[int, Any] = {}  # all actors there ever were, so that no id is used twice

    async def spawn(self, spec: GangSpec) -> Sequence[Any]:
        await self._pass("start")
        actors = await super().spawn(spec)
        for actor in actors:
            self._node[id(actor)] = self._rng.randrange(self.count)
            self.spawned[id(actor)] = actor
        return actors

    def call(self, actor: Any, method: str, *args: Any, returns: int = 1) -> Sequence[Any]:
        return [self._held(box, actor) for box in super().call(actor, method, *args, returns=returns)]

    async def stream(self, actor: Any, method: str, *args: Any) -> AsyncIterator[tuple[Any, Any]]:
        await self._pass(method)
        async for payload, header in super().stream(actor, method, *args):
            if id(actor) in self._hung:
                await asyncio.Event().wait()
            yield self._held(payload, actor), header

    def hang(self, actors: Sequence[Any]) -> None:
        """They answer nothing any more, and live."""
        self._hung |= {id(actor) for actor in actors}

    def sicken(self, actors: Sequence[Any], fault: Exception) -> None:
        """They raise this in the place of their next answer, and live."""
        self.faults |= {id(actor): fault for actor in actors}

    async def lose(self, actors: Sequence[Any]) -> None:
        """Members are gone, and with them the payloads that they have yielded."""
        self._lost |= {id(actor) for actor in actors}
        await self.kill(actors)

    def beside(self, actor: Any) -> list[Any]:
        """All that ever lived on its node, itself included."""
        return [other for key, other in self.spawned.items() if self._node[key] == self._node[id(actor)]]

    def node(self, actor: Any) -> str | None:
        return str(self._node[id(actor)])

    def living(self) -> set[int]:
        return self.spawned.keys() - self._dead.keys()

    async def _run(self, actor: Any, method: str, args: Sequence[Any]) -> Any:
        await self._pass(method)
        if id(actor) in self._hung:
            await asyncio.Event().wait()
        result = await super()._run(actor, method, args)
        await self._pass(method)
        self._check(actor)
        return result

    async def _alive(self, actor: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        async def healthy() -> Any:
            value = await work()
            if fault := self.faults.pop(id(actor), None):
                raise fault
            return value

        return await super()._alive(actor, healthy)

    def _held(self, box: Any, actor: Any) -> _Held:
        return _Held(box.future, box.part, actor, self._lost, self.misses)

    async def _pass(self, method: str) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, SECONDS.get(method, 0.02)))


@dataclass
class Chaos:
    """Strikes `strikes` times, every `seconds` on average: members of `roles` are killed, hang now and then, fall sick
    as `sick` says, and vanish with a node where `nodes` is set. Another node takes its place, for members that are
    spawned from then on."""

    rng: random.Random
    transport: Nodes
    roles: Sequence[str]
    strikes: int
    seconds: float
    nodes: bool = False
    sick: float = 0.0  # the share of strikes
    done: list[str] = field(default_factory=list)
    _learner_deaths: list[int] = field(default_factory=list)  # after which step

    async def reign(self, run: Run) -> None:
        pools = run.pools.all().values()
        while not all(pool.members and len(pool.members.serving()) == len(pool.members) for pool in pools):
            await asyncio.sleep(0.1)  # a member that dies twice as the run starts ends it, in words
        while len(self.done) < self.strikes:
            await asyncio.sleep(self.rng.expovariate(1 / self.seconds))
            if self.nodes and len(self.done) % 6 == 5:
                await self._vanish(run)
            else:
                await self._strike(run)

    async def _strike(self, run: Run) -> None:
        role = self.rng.choice(self.roles)
        pool = run.pools.all()[role]
        members = [m for m in pool.members if m.actors and self._alive(m)]
        if not members or not self._may_kill(role, run):
            return
        victim = [self.rng.choice(self.rng.choice(members).actors)]
        if role == "learner":
            self._learner_deaths.append(run.progress.step)
        if self.sick and self.rng.random() < self.sick:
            self.transport.sicken(victim, self.rng.choice(FAULTS))
            self.done.append(f"sick {role}")
        elif self.rng.random() < 0.15:
            self.transport.hang(victim)
            self.done.append(f"hang {role}")
        else:
            await self.transport.kill(victim)
            self.done.append(f"kill {role}")

    async def _vanish(self, run: Run) -> None:
        if all(self._may_kill(role, run) for role in run.pools.all()):
            self._learner_deaths.append(run.progress.step)
            await self.transport.lose(self.transport.beside(self._wanted(run)))
            self.done.append("node")

    def _wanted(self, run: Run) -> Any:
        """The actor that has yielded most of what waits for the learner; any where nothing does."""
        groups = run.stage.buffer._groups.values() if run.stage else ()
        homes = Counter(scored.samples.home for group in groups for scored in group.samples.values() if scored)
        return max(homes, key=homes.__getitem__) if homes else self.rng.choice([*self.transport.spawned.values()])

    def _may_kill(self, role: str, run: Run) -> bool:
        """A learner as often as a run must survive without a new step; a rollout while no death of it could be the
        one that makes a group guilty."""
        if role == "learner":
            deaths = self._learner_deaths
            last = max(deaths, default=0) - 1  # a death is found a step late, where a node took the learner along
            since = next((i for i, step in enumerate(deaths) if step >= last), 0)
            return run.progress.step > last + 2 or len(deaths) - since < REBUILDS - 1
        nearly = [index for index, deaths in run.progress.suspects.alone.items() if deaths >= DEATHS - 1]
        evaluating = run.stage is None
        return role != "rollout" or not any(
            evaluating if index >= HELDOUT_INDEX else index not in run.progress.ledger for index in nearly
        )

    def _alive(self, member: PoolMember) -> bool:
        """And is not about to fall sick."""
        healthy = self.transport.living() - self.transport.faults.keys()
        return all(id(actor) in healthy for actor in member.actors)


def poison(monkeypatch: pytest.MonkeyPatch, uid: str, seconds: float) -> None:
    """A rollout dies `seconds` after it is asked for this sample; other rows leave before."""
    write = SimulatedRollout.write

    async def fatal(self: SimulatedRollout, request: Request, *arguments: Any) -> AsyncIterator[Sample]:
        if request.uid == uid:
            await asyncio.sleep(seconds)
            raise MemberDied("out of memory")
        async for row in write(self, request, *arguments):
            yield row

    monkeypatch.setattr(SimulatedRollout, "write", fatal)


def lose_before_the_learner(monkeypatch: pytest.MonkeyPatch, uid: str) -> None:
    """The payload of a sample's first attempt goes down with its node once it is scored."""
    fetch = SimulatedLearner.fetch

    def losing(self: SimulatedLearner, *payloads: Any) -> None:
        rows = [s for payload in payloads if "response_ids" in payload.schema.names for s in unpack_samples(payload)]
        if any(row.uid == uid and not row.attempt for row in rows):
            raise ValueLost("went down with its node")
        fetch(self, *payloads)

    monkeypatch.setattr(SimulatedLearner, "fetch", losing)


def run_in_chaos(
    settings: Recipe,
    speeds: Speeds,
    seed: int,
    roles: Sequence[str],
    strikes: int,
    seconds: float,
    nodes: bool = False,
    sick: float = 0.0,
) -> tuple[int, Simulation, Chaos]:
    """One simulated run under Chaos: its exit code and what became of it."""
    rng = random.Random(seed)
    transport = Nodes(rng)
    simulation = Simulation(settings, transport=transport, speeds=speeds)
    chaos = Chaos(rng, transport, roles, strikes, seconds, nodes, sick)

    async def both() -> int:
        reigning = asyncio.create_task(chaos.reign(simulation.run))
        code = await simulation.run.execute()
        reigning.cancel()
        await asyncio.wait([reigning])
        assert reigning.cancelled() or reigning.exception() is None, reigning.exception()
        while any(not m.serving or m.load for pool in simulation.pools.all().values() for m in pool.members):
            await asyncio.sleep(1.0)
        return code

    return in_own_time(both()), simulation, chaos
