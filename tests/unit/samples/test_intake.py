"""What wakes the learner, and which groups a member's death is evidence against."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from configs.schema import Sampling
from orchestrator.pools.suspects import MOMENT, Suspects
from orchestrator.pools.telemetry import Meter
from orchestrator.pools.transport import MemberDied, ValueLost
from orchestrator.samples import intake
from orchestrator.samples.intake import Intake, _Response, _Work
from orchestrator.samples.leases import FreeSlots, Lease, Leases, Ticket
from orchestrator.samples.prompts import MadeOnDemand


@pytest.mark.parametrize("lost", [False, True], ids=["a response is rejected", "its payload is lost"])
def test_the_learner_is_woken_before_a_cut_is_awaited(lost: bool) -> None:
    done: list[str] = []

    async def score_and_reward(block: Any, prompts: Any) -> Any:
        if lost:
            raise ValueLost("gone")
        return [], {"00000000.000": "bad"}

    async def cut(*arguments: Any) -> None:
        done.append("cut")
        await asyncio.Event().wait()

    async def story() -> None:
        member: Any = SimpleNamespace(number=0)
        pool = SimpleNamespace(members=[member], call_member=cut, role="rollout")
        stub: Any = SimpleNamespace(
            score_and_reward=score_and_reward,
            drop=lambda *a: None,
            count=lambda *a: None,
            forget=lambda uid: None,
            lose=lambda *a: [],
        )
        intaking = Intake(
            flow=stub,
            writers={"student": pool},  # type: ignore[dict-item]
            prompts=stub,
            leases=stub,
            buffer=stub,
            meter=stub,
            early_stop=None,
            notice=lambda text: None,
            changed=lambda: done.append("changed"),
            skipped={},
            segments=stub,
        )
        response = _Response("00000000.000", stub, stub, stub)
        work = _Work(member, running={response.uid: response})
        block: Any = SimpleNamespace(source="student", samples=())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(intaking._score_and_buffer(block, work, {response.uid: response}), 0.05)

    asyncio.run(story())
    assert done == ["changed", "cut"]


# A member's death is evidence against the groups that it had begun, unless its node went down.


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(intake, "time", SimpleNamespace(monotonic=lambda: self.now))


class Deathbed:
    """An Intake over members that accept what they are asked for, or not, until they die."""

    def __init__(self, nodes: Sequence[str | None]) -> None:
        self.members: list[Any] = [SimpleNamespace(number=n, node=node) for n, node in enumerate(nodes)]
        self.leases = Leases(2, 1, 0, 1)
        self.deaf: set[int] = set()  # members that do not answer a submission
        self._ends = [asyncio.Event() for _ in nodes]
        pool: Any = SimpleNamespace(
            role="rollout", members=self.members, retries=0, add_load=lambda *a: None, remove_load=lambda *a: None
        )
        nothing: Any = SimpleNamespace(forget=lambda uid: None)
        self.intake = Intake(
            flow=SimpleNamespace(submit=self._submit, blocks=self._blocks),  # type: ignore[arg-type]
            writers={"student": pool},
            prompts=[nothing] * 9,  # type: ignore[arg-type]
            leases=self.leases,
            buffer=nothing,
            meter=Meter(),
            early_stop=None,
            notice=lambda text: None,
            changed=lambda: None,
            skipped={},
            segments=nothing,
        )
        self._collecting = [asyncio.ensure_future(self.intake.collect("student", member)) for member in self.members]

    async def ask(self, member: int, group: int) -> None:
        """Lease a group to a member, and wait until it has answered, if it does."""
        lease = Lease("student", member, (Ticket(group, 0),))
        asking = asyncio.ensure_future(self.intake.lease(lease, Sampling(max_response_tokens=4)))
        await asyncio.sleep(0)
        assert member in self.deaf or await asyncio.wait_for(asking, 1.0) is None

    async def offer(self, member: int, group: int) -> asyncio.Task[None]:
        """Lease a group to a member, whose prompt is yet to be made."""
        lease = Lease("student", member, (Ticket(group, 0),))
        asking = asyncio.ensure_future(self.intake.lease(lease, Sampling(max_response_tokens=4)))
        await asyncio.sleep(0.01)
        return asking

    async def die(self, member: int) -> None:
        self._ends[member].set()
        await self._collecting[member]

    async def _submit(self, pool: Any, member: Any, *arguments: Any) -> None:
        if member.number in self.deaf:
            await self._ends[member.number].wait()
            raise MemberDied("killed")

    async def _blocks(self, pool: Any, member: Any, *arguments: Any) -> AsyncIterator[Any]:
        await self._ends[member.number].wait()
        raise MemberDied("killed")
        yield


def test_a_group_that_a_dead_member_had_not_begun_is_no_suspect() -> None:
    async def story() -> Leases:
        bed = Deathbed([None])
        await bed.ask(0, group=0)
        bed.deaf.add(0)
        await bed.ask(0, group=1)
        await bed.die(0)
        return bed.leases

    leases = asyncio.run(story())
    assert leases.suspects.deaths == {0: 1} and leases.suspects.before == {1: 1}
    free = {"student": {1: FreeSlots(9, idle=True)}}
    (again,) = leases.grant(-1, free)
    assert again.tickets == (Ticket(0, 0, 1), Ticket(1, 0, 1))


@pytest.mark.parametrize(
    ("nodes", "later", "deaths"),
    [
        (("a", "a"), 0.5, {0: 1}),
        (("a", "a"), MOMENT + 1.0, {0: 1, 1: 1}),
        (("a", "b"), 0.5, {0: 1, 1: 1}),
        ((None, None), 0.5, {0: 1, 1: 1}),
    ],
    ids=["of one node", "much later", "of two nodes", "of nodes unknown"],
)
def test_of_two_members_that_die_with_their_node_the_second_is_no_evidence(
    monkeypatch: pytest.MonkeyPatch, nodes: Sequence[str | None], later: float, deaths: dict[int, int]
) -> None:
    clock = Clock(monkeypatch)

    async def story() -> Suspects:
        bed = Deathbed(nodes)
        for number in (0, 1):
            await bed.ask(number, group=number)
        clock.now += 3.0
        await bed.die(0)
        clock.now += later
        await bed.die(1)
        return bed.leases.suspects

    assert asyncio.run(story()).deaths == deaths


def test_what_a_member_was_asked_for_after_another_death_on_its_node_is_evidence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)

    async def story() -> Suspects:
        bed = Deathbed(("a", "a"))
        await bed.ask(0, group=0)
        await bed.die(0)
        clock.now += 1.0
        await bed.ask(1, group=1)
        clock.now += 1.0
        await bed.die(1)
        return bed.leases.suspects

    assert asyncio.run(story()).deaths == {0: 1, 1: 1}


class Slow:
    """Prompts that are made when `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __getitem__(self, index: int) -> Any:
        self.go.wait(5.0)
        return SimpleNamespace()


@pytest.mark.parametrize("dies", [False, True])
def test_a_member_is_given_a_lease_before_its_prompts_are_made(dies: bool) -> None:
    """So its slots are not leased twice; if it dies meanwhile, the lease is asked for again, and nothing suspected."""

    async def story() -> None:
        bed, slow = Deathbed([None]), Slow()
        bed.intake.prompts = MadeOnDemand(slow)
        asking = await bed.offer(0, group=0)
        (work,) = bed.intake._work.values()
        assert work.load == 1 and not work.running, "the loop is not kept waiting"
        if dies:
            await bed.die(0)
        slow.go.set()
        await asyncio.wait_for(asking, 5.0)
        assert len(work.running) == (not dies)
        (*again,) = bed.leases.grant(-1, {"student": {1: FreeSlots(9, idle=True)}})
        assert [lease.tickets for lease in again] == ([(Ticket(0, 0, 1),)] if dies else [])
        assert not bed.leases.suspects.deaths

    asyncio.run(story())
