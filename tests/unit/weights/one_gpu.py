"""Simulated members that share one GPU: they note their calls, and find when two work or hold memory at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.jobs import Share
from orchestrator.pools.transport import LocalTransport
from orchestrator.run import Run
from tests.unit import simulation
from tests.unit.simulation import Simulation, recipe


class Gpu:
    """Which members hold memory, the order of their calls, and violations."""

    def __init__(self) -> None:
        self.holders: list[Noted] = []
        self.lines: list[str] = []
        self.faults: list[str] = []
        self.befalls: dict[str, list[Callable[[], None]]] = {}  # line -> what happens at each time it is noted
        self.start_seconds = self.load_seconds = 0.0

    def take(self, member: Noted, verb: str) -> None:
        beside = [other.role for other in self.holders if (other.role == "learner") != (member.role == "learner")]
        if beside:
            self.faults.append(f"{member.role} took memory beside {beside} in {verb}")
        self.holders.append(member)
        self.note(member, verb)

    def give(self, member: Noted, verb: str) -> None:
        if member.busy or member.loading:
            self.faults.append(f"{member.role} was put to sleep at work")
        self.holders.remove(member)
        self.note(member, verb)

    def work(self, member: Noted, verb: str) -> None:
        if member not in self.holders:
            self.faults.append(f"{member.role} was asked to {verb} in its sleep")
        self.note(member, verb)

    def note(self, member: Noted, verb: str) -> None:
        line = f"{verb} {member.role}"
        self.lines.append(line)
        if befalls := self.befalls.get(line):
            befalls.pop(0)()


GPU = Gpu()
OnStep = Callable[[Run, Mapping[str, Any]], None]


class Noted:
    role: str
    busy = 0  # calls that a drain waits for
    loading = False


class Learner(Noted, SimulatedLearner):
    role = "learner"

    def start(self, *arguments: Any) -> None:
        GPU.take(self, "start")
        super().start(*arguments)

    async def step(self, share: Share) -> Any:  # type: ignore[override]
        GPU.work(self, "step")
        await asyncio.sleep(0.01)  # long enough for others to come and go
        return SimulatedLearner.step(self, share)

    def evaluate(self, share: Share) -> Any:
        if not share.step:  # else it is part of a step
            GPU.work(self, "evaluate")
        return super().evaluate(share)

    def publish(self, model: str | None = None) -> Iterator[Any]:
        if model is None:  # averages are on the host
            GPU.work(self, "publish")
        yield from super().publish(model)

    def save(self, directory: str) -> None:
        GPU.work(self, "save")
        super().save(directory)

    def restore(self, directory: str) -> None:
        GPU.work(self, "restore")
        super().restore(directory)

    def export(self, directory: str) -> None:
        GPU.work(self, "export")
        super().export(directory)

    def sleep(self) -> None:
        GPU.give(self, "sleep")

    def wake(self) -> None:
        GPU.take(self, "wake")


class Engine(Noted):
    async def start(self) -> None:
        GPU.take(self, "start")
        await asyncio.sleep(GPU.start_seconds)

    async def load_slowly(self) -> None:
        GPU.work(self, "load")
        self.loading = True
        await asyncio.sleep(GPU.load_seconds)
        self.loading = False

    async def sleep(self) -> None:
        GPU.give(self, "sleep")

    async def wake(self) -> None:
        GPU.take(self, "wake")

    async def drain(self) -> None:
        GPU.note(self, "drain")
        while self.busy:
            await asyncio.sleep(0.001)


class Rollout(Engine, SimulatedRollout):
    role = "rollout"

    async def write(self, *arguments: Any) -> AsyncIterator[Any]:
        GPU.work(self, "sample")
        self.busy += 1
        try:
            async for row in super().write(*arguments):
                yield row
        finally:
            self.busy -= 1

    async def load(self, *arguments: Any) -> int:
        await self.load_slowly()
        return await super().load(*arguments)


class Scorer(Engine, SimulatedScorer):
    role = "scorer"

    async def score(self, *arguments: Any) -> Any:
        GPU.work(self, "sample")
        self.busy += 1
        try:
            return await super().score(*arguments)
        finally:
            self.busy -= 1

    async def load(self, *arguments: Any) -> int:
        await self.load_slowly()
        return await super().load(*arguments)


class Reward(Engine, SimulatedReward):
    role = "reward"

    def reward(self, *arguments: Any) -> Any:
        GPU.work(self, "sample")
        return super().reward(*arguments)


class Transport(LocalTransport):
    """A killed member holds no memory."""

    async def kill(self, actors: Sequence[Any]) -> None:
        GPU.holders = [holder for holder in GPU.holders if holder not in actors]
        await super().kill(actors)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Members that note what they do."""
    found = Gpu()
    monkeypatch.setattr(sys.modules[__name__], "GPU", found)
    for cls in (Learner, Rollout, Scorer, Reward):
        monkeypatch.setattr(simulation, f"Simulated{cls.__name__}", cls)
    return found


def simulated(
    root: Path, on_step: OnStep = lambda run, line: None, speeds: Speeds | None = None, **changes: Any
) -> Simulation:
    settings = {"colocate": True, "data": {"heldout": "/none"}, "learner": {"zero_stage": 2}} | changes
    return Simulation(recipe(root, **settings), on_step, transport=Transport(), speeds=speeds or Speeds())
