"""Tests of runs that stop or lose members share these: how a member dies, and what holds of the run afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import LocalTransport, ValueLost
from orchestrator.run import Run
from tests.unit.simulation import (
    assert_each_once,
    expected_order,
    learned,
    metrics,
    order_of,
    trained,
)


def assert_whole(root: Path, uninterrupted: Path, bound: int = 0) -> None:
    """Every step once, versions that only grow and, strictly on-policy, exactly the same losses."""
    assert [line["step"] for line in metrics(root)] == [line["step"] for line in metrics(uninterrupted)]
    assert_each_once(root)
    if not bound:
        assert learned(root) == learned(uninterrupted)
        assert order_of(trained(root)) == expected_order()
    versions = [line["policy_version"] for line in metrics(root)]
    assert versions == sorted(set(versions))


def assert_sampled_with_newer(root: Path, steps: range, than: int) -> None:
    """A version number names one set of weights: repeated steps sample with new numbers."""
    names = {f"step_{step:06d}" for step in steps}
    assert min(v for row in trained(root) if row["step"] in names for v in row["versions"]) > than


async def kill_when(transport: LocalTransport, pool: Pool, ready: Callable[[PoolMember], bool]) -> None:
    """Kill the first member of a pool that is ready to be killed."""
    while not (found := [m for m in pool.members if ready(m)]):
        await asyncio.sleep(0.0005)
    await transport.kill(found[0].actors)


class Assassin:
    """`on_step`: at step 2, let a member die as soon as `ready`."""

    def __init__(self, role: str, ready: Callable[[Run, PoolMember], bool]) -> None:
        self._role = role
        self._ready = ready
        self.task: asyncio.Task[None] | None = None

    def __call__(self, run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] == 2:
            pool = run.pools.all()[self._role]
            transport = pool.transport
            assert isinstance(transport, LocalTransport)
            self.task = asyncio.create_task(kill_when(transport, pool, lambda member: self._ready(run, member)))


def has_yielded(run: Run, member: PoolMember) -> bool:
    """In mid-lease: some samples of a batch are in, and this member has more to yield."""
    assert run.stage is not None
    return member.load > 0 and len(run.stage.buffer) > 0


VISIBLE = Speeds(rollout=1e-3, score=1e-4)


def lose_a_value(monkeypatch: pytest.MonkeyPatch, cls: type, method: str, call: int) -> None:
    """The `call`-th call of a method finds its payload lost with a node."""
    whole, calls = getattr(cls, method), []

    def losing(self: Any, *args: Any) -> Any:
        calls.append(self)
        if len(calls) == call:
            raise ValueLost("the node that held it is gone")
        return whole(self, *args)

    monkeypatch.setattr(cls, method, losing)
