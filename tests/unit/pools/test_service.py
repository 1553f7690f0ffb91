"""Pools: hedged calls, deadlines, waiting lines and replacements; congested scorers hold back leases."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.scorer import SimulatedScorer
from actors.wire.records import SampleHeader, ScoreRequest, unpack_samples
from configs.roles.deadlines import Deadlines
from configs.roles.sizes import Resources
from orchestrator.pools.membership import DEATHS_IN_A_ROW
from orchestrator.pools.pool import CallFailed, Patience
from orchestrator.pools.startup import DiedStarting, RoleFailed
from orchestrator.pools.transport import GangSpec, MemberDied
from orchestrator.run import DONE, Run
from orchestrator.samples.flow import isolate
from tests.unit.own_time import in_own_time
from tests.unit.pools.workers import Queue, Worker, pool, queues
from tests.unit.simulation import Simulation, assert_each_once, recipe


def test_a_slow_call_is_hedged_and_the_first_answer_returned() -> None:
    async def story() -> None:
        workers = pool({0: 5.0}, hedge=0.01)
        await workers.members.start(2)
        assert await workers.call("work", patience="once") == [1]
        assert [m.lead.asked for m in workers.members] == [1, 1] and workers.members.restarts == 0
        assert [m.load for m in workers.members] == [1, 0], "it still has what it was given"
        await workers.members.stop()

    asyncio.run(story())


def test_a_hung_member_is_replaced_though_the_hedge_answered() -> None:
    async def story() -> None:
        workers = pool({0: 60.0}, hedge=0.005, deadlines=Deadlines(learn=0.05))
        await workers.members.start(2)
        hung = workers.members[0]
        assert await workers.call("work", patience="once") == [1]
        await asyncio.sleep(0.1)
        assert hung not in workers.members and workers.members.restarts == 1

    asyncio.run(story())


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_block_is_halved_after_a_second_death_under_it(deaths: int) -> None:
    asked: list[list[str]] = []

    async def ask(samples: Sequence[SampleHeader], patience: Patience) -> str:
        asked.append([s.uid for s in samples])
        if len(asked) <= deaths:
            raise CallFailed("it died")
        return "scores"

    a, b = (SampleHeader(uid, uid, 0, 1, 1, 1, "stop", ((0, 1),)) for uid in "ab")
    found = asyncio.run(isolate(ask, [a, b], asyncio.Lock(), "scorer"))
    apart = [["a"], ["b"]] if deaths == 2 else []
    assert asked == [["a", "b"], ["a", "b"], *apart]
    assert found == (["scores"] * (len(apart) or 1), {})


def test_a_member_apart_has_finished_its_work_and_gets_none() -> None:
    async def story() -> None:
        workers = pool({0: 0.2})
        await workers.members.start(2)
        had = asyncio.create_task(workers.call("work"))
        await asyncio.sleep(0.01)
        async with workers.members.apart(workers.members[0]):
            assert had.done() and await workers.call("work") == await workers.call("work") == [1]
            await workers.transport.kill(workers.members[1].actors)
            waits = asyncio.create_task(workers.call("work"))
            await asyncio.sleep(0.01)
            replaced = workers.members[-1]
            assert replaced.number == 2
        assert await waits in ([0], [2])
        assert workers.members[0] in workers.members.serving()

    asyncio.run(story())


def test_apart_raises_when_the_member_dies_of_its_work() -> None:
    async def story() -> None:
        workers = pool({0: 0.2})
        await workers.members.start(2)
        member = workers.members[0]
        had = asyncio.create_task(workers.call("work"))
        await asyncio.sleep(0.01)
        dying = asyncio.create_task(workers.transport.kill(member.actors))
        with pytest.raises(MemberDied, match="worker-0 is gone"):
            async with workers.members.apart(member):
                raise AssertionError("it is gone")
        await dying
        assert await had in ([1], [2])

    asyncio.run(story())


def test_a_call_answered_in_time_is_not_hedged() -> None:
    async def story() -> None:
        workers = pool({}, hedge=1.0)
        await workers.members.start(2)
        assert await workers.call("work", patience="once") == [0]
        assert [m.lead.asked for m in workers.members] == [1, 0]

    in_own_time(story())


def test_the_slow_member_answers_when_the_hedge_dies() -> None:
    async def story() -> None:
        workers = pool({0: 0.1, 1: 5.0}, hedge=0.01)
        await workers.members.start(2)
        call = asyncio.create_task(workers.call("work", patience="once"))
        await asyncio.sleep(0.05)
        assert [m.lead.asked for m in workers.members] == [1, 1]
        await workers.transport.kill(workers.members[1].actors)
        assert await call == [0]

    in_own_time(story())


def test_a_member_that_misses_a_deadline_is_replaced() -> None:
    async def story() -> None:
        workers = pool({0: 60.0}, deadlines=Deadlines(learn=0.02))
        await workers.members.start(1)
        assert await workers.call("work") == [1], "the replacement answers"
        assert workers.members.restarts == 1

    in_own_time(story())


@pytest.mark.parametrize("load", [0, 1])
def test_deaths_at_work_end_a_role_and_deaths_without_work_do_not(load: int) -> None:
    async def story() -> None:
        workers = pool({})
        await workers.members.start(1)
        for _ in range(DEATHS_IN_A_ROW):
            workers.members.check()
            (member,) = workers.members
            workers.add_load(member, load)
            reading = asyncio.ensure_future(anext(workers.stream(member, "blocks")))
            await asyncio.sleep(0.01)
            await workers.transport.kill(member.actors)
            with pytest.raises(MemberDied):
                await reading
            await asyncio.sleep(0.01)
        if load:
            with pytest.raises(RoleFailed, match=f"{DEATHS_IN_A_ROW} members died one after the other"):
                await workers.call("work")
        else:
            assert await workers.call("work") == [DEATHS_IN_A_ROW]

    in_own_time(story())


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_member_that_dies_as_it_starts_is_started_once_more(deaths: int) -> None:
    async def story() -> None:
        workers, notices = queues(None), list[str]()
        workers.members.notice, spec, died = notices.append, workers.startup.spec, list[int]()

        class Stillborn(Queue):
            async def start(self) -> None:
                died.append(self._number)
                raise MemberDied("no memory")

        def mostly(number: int) -> GangSpec:
            return replace(spec(number), cls=Stillborn) if len(died) < deaths else spec(number)

        workers.startup.spec = mostly
        if deaths == 2:
            with pytest.raises(DiedStarting, match="worker-1 died while starting: no memory"):
                await workers.members.start(1)
        else:
            await workers.members.start(1)
            assert await workers.call("work") == [1] and workers.members[0].restarts == workers.members.restarts == 1
        assert any("worker-0 died while starting: no memory" in notice for notice in notices)

    in_own_time(story())


class Slow(Worker):
    """Its first call is slow, as with Ray, where it waits for imports and the constructor."""

    async def attach_log(self, path: str) -> int:
        await asyncio.sleep(self._delays.get(self._number, 0.0))
        return 0


def test_a_member_that_hangs_in_its_first_call_counts_as_dead_on_start(tmp_path: Path) -> None:
    async def story() -> None:
        spec = partial(GangSpec, "slow", Slow, resources=Resources())
        workers = pool({}, logs=tmp_path, deadlines=Deadlines(start=0.02))
        workers.startup.spec = lambda number: spec(((number, {0: 60.0, 1: 60.0}),))
        with pytest.raises(DiedStarting, match=r"worker-1 died while starting: .* no answer to start in 0.02 s"):
            await workers.members.start(1)
        await workers.members.start(1)
        assert await workers.call("work") == [2]

    in_own_time(story())


def test_calls_near_each_other_go_to_one_member() -> None:
    async def story() -> None:
        workers = pool({})
        await workers.members.start(3)
        found = {near: {(await workers.call("work", near=near))[0] for _ in range(4)} for near in range(6)}
        assert found == {near: {near % 3} for near in range(6)}

    asyncio.run(story())


def test_a_failed_call_names_the_number_of_dead_members() -> None:
    async def story() -> None:
        workers = pool(dict.fromkeys(range(3), 60.0), deadlines=Deadlines(learn=0.01))
        await workers.members.start(1)
        with pytest.raises(CallFailed, match="worker: work failed on 3 members"):
            await workers.call("work")

    in_own_time(story())


def test_nothing_is_leased_while_scorers_are_congested(tmp_path: Path) -> None:
    free: list[tuple[int, bool]] = []

    def look(run: Run, line: Mapping[str, Any]) -> None:
        if run.stage is None or free:
            return
        (first, second), rollouts = run.pools.scorers["teacher"].members, run.pools.rollout
        assert rollouts is not None
        held = first.load, second.load
        for load in (80, 81):  # of two members that may each hold 40
            first.load, second.load = load, 0
            free.append((load, bool(run.stage.rollouts.free_slots(run.progress.version))))
        first.load, second.load = held

    queue = {"members": 2, "max_queued_tokens": 40}
    assert Simulation(recipe(tmp_path, scorer={"teacher": queue}), look).go() == DONE
    assert free == [(80, True), (81, False)]
    assert_each_once(tmp_path)


def test_a_scorers_load_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one response, of up to 18 tokens with its prompt; the scorers are the bottleneck."""
    score, has, most = SimulatedScorer.score, Counter[int](), [0]

    async def counted(self: SimulatedScorer, payload: Any, request: ScoreRequest) -> Any:
        tokens = sum(len(s.prompt_ids) + len(s.response_ids) for s in unpack_samples(payload))
        has[id(self)] += tokens
        most[0] = max(most[0], has[id(self)])
        answer = await score(self, payload, request)
        has[id(self)] -= tokens
        return answer

    monkeypatch.setattr(SimulatedScorer, "score", counted)
    queue = {"members": 2, "max_queued_tokens": 40}
    settings = recipe(tmp_path, scorer={"teacher": queue}, max_staleness=2)
    assert Simulation(settings, speeds=Speeds(score=0.1)).go_in_own_time() == DONE
    assert 40 <= most[0] < 40 + 18
    assert_each_once(tmp_path)
