"""Scorers that take turns on a GPU, in whole simulated runs: no two models are awake at once, no member is called in
its sleep, and the run learns what it learns without turns. `Rota` alone: nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from actors.member import Member
from actors.simulated.known import Speeds
from actors.simulated.scorer import SimulatedScorer
from configs.roles.sizes import Resources
from configs.schema import Recipe
from orchestrator.pools.layout import MemberSpecs
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.telemetry import MemberClock
from orchestrator.pools.transport import GangSpec, LocalTransport
from orchestrator.run import DONE, STOPPED, Run
from orchestrator.surface.outcome import first_of
from orchestrator.weights.canary_watch import TeacherWrong
from orchestrator.weights.carriers import Directories, Version
from orchestrator.weights.scorer_turns import Rota, ScorerTurns
from orchestrator.weights.turns import OwnGpus
from orchestrator.weights.versions import Versions
from tests.unit import simulation
from tests.unit.own_time import in_own_time
from tests.unit.runs.several_models import HELDOUT, OTHER, PROMPTS
from tests.unit.simulation import MEMBER, Simulation, learned, metrics, recipe, simulated, stop_at

SHARED = {"members": 2, "turns": "gpu"}
TURNS: dict[str, Any] = {"models": OTHER["models"], "scorer": {"teacher": SHARED, "other": SHARED}}
APART: dict[str, Any] = {"models": OTHER["models"], "scorer": {"teacher": MEMBER, "other": MEMBER}}
MIXED = {"objective": {"target": {"teacher": 0.7, "other": 0.3}}}
ROUTED = {"objective": {"target": {"field": "topic", "models": {"a": "teacher", "b": "other"}}}}


class Noted(SimulatedScorer):
    """Notes who is awake, and what is against the turns."""

    awake: ClassVar[set[Noted]] = set()
    faults: ClassVar[list[str]] = []
    changes: ClassVar[int] = 0
    when: ClassVar[dict[str, Callable[[Noted], None]]] = {}  # what befalls a member that is asked to do this, once
    model = ""

    def wakes(self, verb: str) -> None:
        if others := {member.model for member in Noted.awake} - {self.model}:
            Noted.faults.append(f"{self.model} took memory beside {others} in {verb}")
        Noted.awake.add(self)

    def works(self, verb: str) -> None:
        if befalls := Noted.when.pop(f"{verb} {self.model}", None):
            befalls(self)
        if self not in Noted.awake:
            Noted.faults.append(f"{self.model} was asked to {verb} in its sleep")

    async def start(self) -> None:
        self.wakes("start")
        await asyncio.sleep(0.001)

    async def score(self, *arguments: Any) -> Any:
        self.works("score")
        found = await super().score(*arguments)
        self.works("finish")
        return found

    async def canary(self, *arguments: Any) -> Any:
        self.works("canary")
        return await super().canary(*arguments)

    async def load(self, *arguments: Any) -> int:
        self.works("load")
        return await super().load(*arguments)

    async def swap(self, *arguments: Any) -> int:
        self.works("swap")
        return await super().swap(*arguments)

    async def sleep(self) -> None:
        Noted.changes += 1
        self.works("sleep")
        Noted.awake.discard(self)

    async def wake(self) -> None:
        self.wakes("wake")
        self.works("wake")


class Teacher(Noted):
    model = "teacher"


class Other(Noted):
    model = "other"


def noted_scorers(speeds: Speeds) -> MemberSpecs:
    specs = simulated(speeds)

    def scorer(recipe: Recipe, model: str, vocabulary: int, swap: int) -> GangSpec:
        return replace(specs.scorer(recipe, model, vocabulary, swap), cls=Teacher if model == "teacher" else Other)

    return replace(specs, scorer=scorer)


class Transport(LocalTransport):
    """A killed member holds no memory once it has ended."""

    async def kill(self, actors: Sequence[Any]) -> None:
        await asyncio.sleep(0.02)
        Noted.awake.difference_update(actors)
        await super().kill(actors)


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "simulated", noted_scorers)
    Noted.awake, Noted.faults, Noted.changes, Noted.when = set(), [], 0, {}


def turned(root: Path, *changes: dict[str, Any], **more: Any) -> Simulation:
    settings: dict[str, Any] = TURNS
    for change in changes:
        settings = settings | change
    return Simulation(recipe(root, **settings), train=PROMPTS, heldout=HELDOUT, transport=Transport(), **more)


def apart(root: Path, *changes: dict[str, Any]) -> list[list[Any]]:
    """What a run without turns learns."""
    settings: dict[str, Any] = APART
    for change in changes:
        settings = settings | change
    assert Simulation(recipe(root / "apart", **settings), train=PROMPTS, heldout=HELDOUT).go() == DONE
    return learned(root / "apart")


@pytest.mark.parametrize(
    "changes",
    [
        MIXED,
        ROUTED,
        ROUTED | {"stream_tokens": 4},
        ROUTED | {"max_staleness": 2},
        MIXED | {"data": {"heldout": "/none"}, "evaluate": {"every": 2}},
    ],
    ids=["mixed", "routed", "in segments", "ahead", "evaluated"],
)
def test_a_run_whose_scorers_take_turns_learns_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    run = turned(tmp_path, changes, speeds=Speeds(rollout=1e-4, score=1e-5))
    assert run.go() == DONE
    assert not Noted.faults and Noted.changes > 4
    if "max_staleness" not in changes:  # else who ran ahead decides
        assert learned(tmp_path) == apart(tmp_path, changes)
    assert len(metrics(tmp_path)) == simulation.STEPS


@pytest.mark.parametrize("verb", ["score", "finish", "sleep", "wake", "canary"])
def test_a_member_that_dies_is_replaced_in_its_turn(verb: str, tmp_path: Path) -> None:
    run = turned(tmp_path, ROUTED)

    def dies(member: Noted) -> None:
        asyncio.get_running_loop().create_task(run.transport.kill([member]))

    Noted.when = {f"{verb} teacher": dies, f"{verb} other": dies}
    assert run.go() == DONE
    assert not Noted.faults and not Noted.when
    assert sum(pool.members.restarts for pool in run.pools.scorers.values()) >= 2
    assert learned(tmp_path) == apart(tmp_path, ROUTED)


def test_a_stopped_run_resumes_with_turns(tmp_path: Path) -> None:
    assert turned(tmp_path, MIXED, on_step=stop_at(3)).go() == STOPPED
    Noted.awake = set()  # the processes have ended
    assert turned(tmp_path, MIXED).go() == DONE
    assert not Noted.faults and learned(tmp_path) == apart(tmp_path, MIXED)


def test_a_model_that_is_swapped_in_is_loaded_in_its_turn(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    models = OTHER["models"] | {"teacher": {"path": "/none", "swaps": {3: str(tmp_path / "new")}}}
    swapped: list[str] = []
    Noted.when = {"swap teacher": lambda member: swapped.append(member.model)}
    assert turned(tmp_path, MIXED, {"models": models}).go() == DONE
    assert swapped and not Noted.faults


def test_an_average_of_the_student_is_loaded_in_its_turn(tmp_path: Path) -> None:
    models = {"other": {"path": None, "weights": "ema", "decay": 0.5}}
    loaded: list[str] = []
    Noted.when = {"load other": lambda member: loaded.append(member.model)}
    assert turned(tmp_path, MIXED, {"models": models}).go() == DONE
    assert loaded and not Noted.faults


def test_a_suspicious_model_is_checked_in_its_turn(tmp_path: Path) -> None:
    """One of the two is asleep when it is suspected."""
    checks: list[asyncio.Task[bool]] = []

    def suspect(run: Run, line: Any) -> None:
        if line["step"] == 2:
            checks.extend(asyncio.create_task(run.roles.canaries.alarm(m, "a test")) for m in ("teacher", "other"))

    assert turned(tmp_path, MIXED, on_step=suspect).go() == DONE
    assert [check.result() for check in checks] == [False, False] and not Noted.faults


def test_a_model_that_is_wrong_when_it_wakes_up_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its members, and their successors, score all tokens alike from then on."""
    Noted.when = {"wake other": lambda member: monkeypatch.setattr(Other, "canary", _alike)}
    with pytest.raises(BaseException) as raised:
        turned(tmp_path, MIXED).go()
    assert isinstance(first_of(raised.value), TeacherWrong) and "scorer.other" in str(first_of(raised.value))


async def _alike(member: Noted, texts: Any, repeats: bool) -> list[list[float]]:
    return [[-1.0] * sum(len(text) - 1 for text in texts)]


def test_a_run_without_turns_wakes_what_an_earlier_one_left_asleep(tmp_path: Path) -> None:
    first, second = turned(tmp_path / "first", MIXED), turned(tmp_path / "second", APART, MIXED)

    async def both() -> tuple[int, int]:
        code = await first.run.execute()
        run = Run(second.recipe, second.directory, second.inputs, first.pools, second)
        return code, await run.execute()

    assert asyncio.run(both()) == (DONE, DONE)
    assert {member.model for member in Noted.awake} == {"teacher", "other"}
    assert learned(tmp_path / "second") == apart(tmp_path, MIXED)


@pytest.mark.parametrize("how", ["hangs", "leaves", "leaves while it starts"])
def test_no_model_wakes_before_those_that_are_gone_have_ended(how: str, tmp_path: Path) -> None:
    """A member is killed because it does not answer, or leaves when the role gets smaller."""
    tasks: list[asyncio.Task[None]] = []

    def scaled(run: Run, line: Any) -> None:
        if how != "hangs" and line["step"] in (2, 4):
            members, task = run.pools.scorers["teacher"].members, asyncio.create_task
            if how == "leaves":
                tasks.append(task(members.resize(1 if line["step"] == 2 else 2)))
            else:
                tasks.extend((task(members.resize(3)), task(members.resize(2))))

    async def never(*_: Any) -> None:
        await asyncio.sleep(3600)

    def hang(member: Noted) -> None:
        member.score = never  # type: ignore[method-assign, assignment]

    if how == "hangs":
        Noted.when = {"finish teacher": hang, "finish other": hang}
    run = turned(tmp_path, ROUTED, {"deadlines": {"score": 0.5}}, on_step=scaled)
    assert run.go() == DONE
    assert not Noted.faults and not Noted.when and Noted.changes > 4
    assert learned(tmp_path) == apart(tmp_path, ROUTED)


class Nobody(tuple[PoolMember, ...]):
    async def vacated(self) -> None: ...


class Memberless:
    """A pool of nobody."""

    members = Nobody()


def test_a_call_that_is_cancelled_in_line_holds_nobody_up() -> None:
    """Some iterations of the event loop after the turn before it has ended: at 0 the change is yet to begin."""

    async def work(iterations: int) -> list[int]:
        pools = [cast(Pool, Memberless()) for _ in range(2)]
        turns, entered = ScorerTurns(pools, on_wake=cast(Any, None)), list[int]()

        async def call(number: int) -> None:
            async with turns.of(pools[number]):
                entered.append(number)
                await asyncio.sleep(0.001)

        async with asyncio.timeout(5):
            async with turns.of(pools[0]):
                gone = asyncio.create_task(call(1))
                await asyncio.sleep(0.001)
            for _ in range(iterations):
                await asyncio.sleep(0)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            await asyncio.gather(call(0), call(1))
        return entered

    for iterations in range(4):
        assert asyncio.run(work(iterations))[-2:] in ([0, 1], [1, 0])


class Slow(Member):
    """Takes its seconds for a request, for a ping and for other weights."""

    pings = 0.0

    async def start(self) -> None: ...

    async def ping(self) -> int:
        await asyncio.sleep(self.pings)
        return 0

    async def score(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def swap(self, version: int, model: str) -> int:
        await asyncio.sleep(1.0)
        return version

    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...


async def _two_in_turns() -> tuple[Pool, Pool, Versions]:
    """Two pools of one member that take turns, and versions of the first one's model."""

    async def woken(pool: Pool, member: PoolMember) -> None: ...

    place = Resources(cpus=1.0, threads=1)
    first, second = (
        Pool(role, LocalTransport(), lambda number: GangSpec("x", Slow, ((),), place)) for role in ("first", "second")
    )
    turns = ScorerTurns((first, second), woken)
    for pool in (first, second):
        pool.turn = pool.startup.starting = partial(turns.of, pool)
        pool.clock = MemberClock(asyncio.get_running_loop().time)
        await pool.members.start(1)
    learner = SimpleNamespace(turns=OwnGpus(), publish=None)
    versions = Versions(cast(Any, learner), Directories(str), idle=True)
    versions.current = Version(1, ("new",))
    return first, second, versions


def test_a_model_is_loaded_though_a_call_to_its_member_waits_for_a_later_turn() -> None:
    """The call was routed to the member; while the member was asked whether it lives, another model waited so long that
    no call enters any more."""

    async def story() -> int:
        first, second, versions = await _two_in_turns()
        member = first.members[0]
        member.actors[0].pings = 12.0
        calls = [asyncio.create_task(first.call("score", 1.0))]
        await asyncio.sleep(1.0)
        calls += [asyncio.create_task(versions.pull(first, member)), asyncio.create_task(second.call("score", 1.0))]  # type: ignore[list-item]
        async with asyncio.timeout(100.0):
            await asyncio.gather(*calls)
        return member.version

    assert in_own_time(story()) == 1


def test_nobody_waits_for_ever_behind_one_who_no_longer_waits() -> None:
    async def story() -> int:
        first, second, versions = await _two_in_turns()
        member = first.members[0]
        calls = [asyncio.create_task(first.call("score", 30.0))]
        await asyncio.sleep(1.0)
        gone = asyncio.create_task(second.call("score", 1.0))
        await asyncio.sleep(11.0)
        calls.append(asyncio.create_task(first.call("score", 1.0)))  # the other has waited for more than ten seconds
        await asyncio.sleep(1.0)
        gone.cancel()
        await asyncio.sleep(1.0)
        calls.append(asyncio.create_task(versions.pull(first, member)))  # type: ignore[arg-type]
        async with asyncio.timeout(100.0):
            await asyncio.gather(*calls)
        return member.version

    assert in_own_time(story()) == 1


def test_a_member_that_sleeps_is_not_busy_and_what_it_owes_is_late() -> None:
    async def story() -> tuple[float, float, float]:
        first, second, _ = await _two_in_turns()
        calls = [asyncio.create_task(second.call("score", 8.0))]
        await asyncio.sleep(0.5)
        calls.append(asyncio.create_task(first.call("score", 2.0)))
        await asyncio.sleep(5.0)
        late = first.oldest_call(time.monotonic())
        await asyncio.gather(*calls)
        return first.clock.total(), second.clock.total(), late

    busy, other, late = in_own_time(story())
    assert busy == pytest.approx(2.0, abs=0.5) and other == pytest.approx(8.0, abs=0.5)
    assert late == pytest.approx(5.0, abs=0.5)


# --- whose turn it is ---

A, B, C = (cast(Pool, object()) for _ in range(3))


def test_a_turn_takes_calls_until_another_pool_has_waited_long_enough() -> None:
    rota = Rota(seconds=10.0)
    assert not rota.enter(A, 0.0) and rota.next() is A
    rota.begin(A, 1)
    assert rota.enter(A, 1.0) and not rota.enter(B, 2.0)
    assert rota.enter(A, 11.9) and not rota.enter(A, 12.1)
    assert rota.next() is None, "three calls are in the turn"
    rota.inside = 0
    assert rota.next() is B
    rota.begin(B, 1)
    assert not rota.enter(B, 22.2), "by now the first waits itself"
    rota.inside = 0
    assert rota.next() is A


def test_pools_have_their_turns_in_the_order_in_which_they_began_to_wait() -> None:
    rota = Rota()
    for pool, now in ((C, 0.0), (A, 1.0), (B, 2.0), (C, 3.0)):
        assert not rota.enter(pool, now)
    turns = []
    while (pool := rota.next()) is not None:
        turns.append(pool)
        rota.begin(pool, 0)
    assert turns == [C, A, B]


def test_a_pool_that_gave_up_waiting_has_no_turn() -> None:
    rota = Rota()
    assert not rota.enter(A, 0.0) and not rota.enter(B, 1.0)
    rota.forget(A)
    assert rota.next() is B


def test_a_call_does_not_overtake_those_of_its_pool_that_wait() -> None:
    rota = Rota(seconds=10.0)
    rota.begin(A, 1)
    assert not rota.enter(B, 0.0) and not rota.enter(A, 11.0)
    rota.forget(B)
    assert not rota.enter(A, 12.0), "nobody else waits, and one of its own does"
    rota.inside = 0
    assert rota.next() is A
