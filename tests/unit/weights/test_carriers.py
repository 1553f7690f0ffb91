"""A second carrier, whose ends must meet, like NCCL or vLLM's transfer engine: learner and member open a channel
together, and neither completes a transfer alone.

Whole simulated runs over it: members join, leave, die and hang in the middle of a transfer, and so does the learner.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from actors.simulated.learner import SimulatedLearner
from actors.simulated.rollout import SimulatedRollout
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import MemberDied, ValueLost
from orchestrator.run import DONE, Run
from orchestrator.weights.carriers import Version
from orchestrator.weights.learner_group import LearnerDied, LearnerGroup
from tests.unit import simulation
from tests.unit.own_time import in_own_time
from tests.unit.simulation import STEPS, Simulation, assert_each_once, learned, metrics, recipe
from tests.unit.weights.faults import Faults, once


class Wire:
    """A channel: a part is passed when both ends are there. Closing it releases the sender."""

    def __init__(self) -> None:
        self._parts: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._taken = asyncio.Semaphore(0)
        self.busy = asyncio.Lock()

    async def put(self, part: bytes) -> None:
        await self._parts.put(part)
        await self._taken.acquire()

    async def get(self) -> bytes:
        part = await self._parts.get()
        self._taken.release()
        return part

    def close(self) -> None:
        self._taken.release()


@dataclass
class Network(Faults):
    """The wires by channel, and what each member received."""

    wires: dict[str, Wire] = field(default_factory=dict)
    sent: dict[int, bytes] = field(default_factory=dict)  # the weights of each version
    taken: list[tuple[int, bytes]] = field(default_factory=list)  # (version, data)

    def wire(self, channel: str) -> Wire:
        return self.wires.setdefault(channel, Wire())


NETWORK = Network()


class Sender(SimulatedLearner):
    """Rank 0 sends; the other ranks only gather."""

    def describe(self, model: str | None) -> dict[str, Any]:
        """What a member must know before it receives a version."""
        return {"names": ["weights"], "nbytes": self._weights.nbytes}

    async def open_channel(self, channel: str) -> None:
        if not self._rank:
            await NETWORK.wire(channel).put(b"hello")

    async def send(self, channel: str, version: int) -> None:
        if self._rank:
            return
        async with NETWORK.wire(channel).busy:
            data = NETWORK.sent[version] = self._weights.tobytes()
            for half in (data[:16], data[16:]):
                await NETWORK.inject("learner", version)
                await NETWORK.wire(channel).put(half)

    async def close_channel(self, channel: str) -> None:
        """Returns when the sender is released."""
        NETWORK.wire(channel).close()
        async with NETWORK.wire(channel).busy:
            pass


class Receiver(SimulatedRollout):
    async def open_channel(self, channel: str) -> None:
        assert await NETWORK.wire(channel).get() == b"hello"

    async def receive(self, channel: str, version: int, update: Mapping[str, Any]) -> int:
        data = await NETWORK.wire(channel).get()
        await NETWORK.inject("member", version)
        while len(data) < update["nbytes"]:
            data += await NETWORK.wire(channel).get()
        NETWORK.taken.append((version, data))
        return await self.load(version, ())


class Rendezvous:
    """Keeps no copy: a version exists until the learner's weights change."""

    def __init__(self) -> None:
        self._live: dict[str | None, tuple[PoolMember, int]] = {}  # model -> (learner, version) of its live weights
        self._channels: dict[tuple[PoolMember, PoolMember], str] = {}

    async def publish(self, learner: LearnerGroup, number: int, model: str | None) -> Version:
        update, *_ = await learner.take_part("describe", model)
        self._live[model] = learner.member, number
        return Version(number, (model, update))

    async def pull(self, version: Version, learner: LearnerGroup, pool: Pool, member: PoolMember) -> int:
        model, update = version.parts
        async with learner.turns.learner():
            if self._live[model] != (learner.member, version.number):
                raise ValueLost(f"the weights of version {version.number} have moved on")
            pair = (learner.member, member)
            if pair not in self._channels:
                channel = uuid4().hex
                await meet(learner.take_part("open_channel", channel), learner, pool, member, "open_channel", channel)
                self._channels[pair] = channel
            channel = self._channels[pair]
            sending = learner.take_part("send", channel, version.number)
            return await meet(sending, learner, pool, member, "receive", channel, version.number, update)


async def meet(
    sending: Coroutine[Any, Any, Any],
    learner: LearnerGroup,
    pool: Pool,
    member: PoolMember,
    method: str,
    channel: str,
    *arguments: Any,
) -> Any:
    """Run both ends; returns the member's answer. If the member fails, the learner's end is closed: it would wait for
    ever."""
    receiving = pool.call_member(member, method, channel, *arguments, deadline="load")
    ends = [asyncio.ensure_future(end) for end in (sending, receiving)]
    try:
        return (await asyncio.gather(*ends))[1]
    except LearnerDied:
        raise
    except Exception:
        await learner.take_part("close_channel", channel)
        await ends[0]  # raises if the learner hangs
        raise
    finally:
        for end in ends:
            end.cancel()


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Learners and rollouts with both ends of the carrier, and the network between them."""
    found = Network()
    monkeypatch.setattr(sys.modules[__name__], "NETWORK", found)
    monkeypatch.setattr(simulation, "SimulatedLearner", Sender)
    monkeypatch.setattr(simulation, "SimulatedRollout", Receiver)
    return found


def simulated(root: Path, **changes: Any) -> Simulation:
    return Simulation(recipe(root, **changes), carrier=Rendezvous())


@pytest.fixture(scope="module")
def by_object_store(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What a run over the object store learns."""
    root = tmp_path_factory.mktemp("object_store")
    assert Simulation(recipe(root)).go() == DONE
    return learned(root)


def assert_whole(root: Path, network: Network, expected: list[list[Any]] | None) -> None:
    """Every sample is trained once, and every member received the same weights for a version."""
    assert_each_once(root)
    assert network.taken and all(data == network.sent[version] for version, data in network.taken)
    assert expected is None or learned(root) == expected


@pytest.mark.parametrize("changes", [{}, {"learner": {"ranks": 2}}, {"max_staleness": 1}], ids=str)
def test_a_run_over_the_rendezvous_carrier_learns_the_same(
    network: Network, by_object_store: list[list[Any]], tmp_path: Path, changes: dict[str, Any]
) -> None:
    simulation = simulated(tmp_path, **changes)
    assert simulation.go_in_own_time() == DONE and not simulation.notices
    assert_whole(tmp_path, network, by_object_store if not changes else None)
    assert len(network.wires) == 2, "one for each member, however many versions"
    taken = {version for version, _ in network.taken}
    assert taken == set(range(STEPS + 1)) or ("max_staleness" in changes and taken >= {0, STEPS})


def test_an_end_of_a_transfer_that_waits_for_its_peer_fails_at_its_deadline(network: Network, tmp_path: Path) -> None:
    """An end that waits for its peer fails at its own deadline."""

    async def story() -> None:
        simulation = simulated(tmp_path)
        pool, learner = simulation.pools.rollout, simulation.run.learner
        assert pool is not None
        await asyncio.gather(pool.members.start(1), simulation.pools.learner.members.start(1))
        (member,) = pool.members
        update, *_ = await learner.take_part("describe", None)
        with pytest.raises(LearnerDied, match="learner gave no answer to send in 3600 s"):
            await learner.take_part("send", "first", 7)
        with pytest.raises(MemberDied, match="rollout gave no answer to load in 600 s"):
            await pool.call_member(member, "receive", "second", 7, update, deadline="load")
        while not (serving := pool.members.serving()):  # a replacement
            await asyncio.sleep(0.001)
        sending = learner.take_part("send", "third", 7)
        assert await meet(sending, learner, pool, serving[0], "receive", "third", 7, update) == 7

    in_own_time(story())


def test_members_join_and_leave_while_weights_travel(
    network: Network, by_object_store: list[list[Any]], tmp_path: Path
) -> None:
    sizes = {2: 4, 4: 1}
    tasks: list[asyncio.Task[None]] = []

    def resize(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] in sizes:
            assert run.pools.rollout is not None
            tasks.append(asyncio.get_running_loop().create_task(run.pools.rollout.members.resize(sizes[line["step"]])))

    simulation = simulated(tmp_path)
    simulation.on_step = resize
    assert simulation.go_in_own_time() == DONE
    assert_whole(tmp_path, network, by_object_store)
    assert len(network.wires) == 4 and len(simulation.pools.all()["rollout"].members.serving()) == 1


@pytest.mark.parametrize("fate", ["dies", "hangs", "raises"])
@pytest.mark.parametrize("bound", [0, 1])
def test_a_member_that_fails_in_mid_transfer_is_replaced_and_the_learner_is_released(
    network: Network, by_object_store: list[list[Any]], tmp_path: Path, fate: str, bound: int
) -> None:
    network.fault = once("member", 3, fate)
    simulation = simulated(tmp_path, max_staleness=bound)
    assert simulation.go_in_own_time() == DONE
    assert_whole(tmp_path, network, None if bound else by_object_store)
    assert simulation.pools.all()["rollout"].members.restarts == 1
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["learner_rebuilds"] == 0, "the sender was let go"


@pytest.mark.parametrize("fate", ["dies", "hangs"])
@pytest.mark.parametrize("bound", [0, 1])
def test_a_learner_that_fails_in_mid_transfer_is_built_anew(
    network: Network, by_object_store: list[list[Any]], tmp_path: Path, fate: str, bound: int
) -> None:
    network.fault = once("learner", 3, fate)
    simulation = simulated(tmp_path, max_staleness=bound)
    assert simulation.go_in_own_time() == DONE
    assert_whole(tmp_path, network, None if bound else by_object_store)
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["learner_rebuilds"] == 1
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["policy_version"] > STEPS, "no number names two sets of weights"
