"""Scaling a live run on simulated members: by a command, by autoscaling, twice at once, and with no place to go."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actors.metrics import FLOW_METRICS
from actors.simulated import rollout
from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from actors.simulated.rollout import SimulatedRollout
from configs.schema import Recipe
from orchestrator.pools.telemetry import MemberClock, Meter
from orchestrator.pools.transport import GangSpec
from orchestrator.run import DONE, Run
from orchestrator.scaling.autoscale import GROW_AFTER
from orchestrator.scaling.elastic import JUDGED_EVERY, Elastic
from orchestrator.surface.status import status_of
from orchestrator.surface.trackers import exported
from tests.unit.own_time import OwnTime
from tests.unit.simulation import EACH, Simulation, assert_none_aged, metrics, recipe, trained

PROMPTS = 6  # groups a step
GROUP_SECONDS = 4.0  # a rollout writes one group at a time, and nobody else takes any time


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """uid -> number of the rollout that was asked for it, in order of birth; every response is 8 tokens long."""
    born: list[SimulatedRollout] = []
    asked: dict[str, int] = {}
    init, write = SimulatedRollout.__init__, SimulatedRollout.write

    def numbered(self: SimulatedRollout, *arguments: Any) -> None:
        born.append(self)
        init(self, *arguments)

    async def noted(self: SimulatedRollout, request: Any, *arguments: Any) -> AsyncIterator[Any]:
        asked[request.uid] = born.index(self)
        async for row in write(self, request, *arguments):
            yield row

    monkeypatch.setattr(SimulatedRollout, "__init__", numbered)
    monkeypatch.setattr(SimulatedRollout, "write", noted)
    monkeypatch.setattr(rollout, "_length", lambda request, sampling: 8)
    return asked


def rollout_bound(root: Path, steps: int, **changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "run": {"steps": steps},
        "batch": {"prompts_per_step": PROMPTS},
        "rollout": {"members": 1, "max_concurrent": EACH},
        "checkpoint": {"every": 0},
    }
    return recipe(root, **base | changes)


class Live:
    """A run with a reading each second, scaled after the steps in `script`."""

    def __init__(self, settings: Recipe, script: Mapping[int, Mapping[str, int]] | None = None) -> None:
        self._script = script or {}
        self._loop = OwnTime()
        self.simulation = Simulation(settings, self._after, speeds=Speeds(rollout=GROUP_SECONDS / 8))
        self.pools = self.simulation.pools.all()
        for pool in self.pools.values():
            pool.clock = MemberClock(self._loop.time)
        parts = (settings, self.simulation.directory, self.simulation.inputs, self.simulation.pools, self.simulation)
        self.run = self.simulation.run = Run(*parts, meter=Meter(self._loop.time))
        self.notices: list[str] = []
        self.seen: list[dict[str, Any]] = []  # status after each step

    def go(self) -> int:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            return runner.run(self._go())

    async def _go(self) -> int:
        self.elastic = Elastic(self.run, self.notices.append, self._loop.time)
        ticking = asyncio.create_task(self._tick())
        code = await self.run.execute()
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        await self.elastic.close()
        return code

    async def _tick(self) -> None:
        while True:
            self.elastic.tick()
            await asyncio.sleep(1.0)

    def _after(self, run: Run, line: Mapping[str, Any]) -> None:
        self.elastic.scale(self._script.get(line["step"], {}))
        self.seen.append(status_of(run, self.elastic, "training"))

    def sizes(self, role: str) -> list[int]:
        """Members of a role after each step."""
        return [sum(m["name"].startswith(f"{role}-") for m in status["members"]) for status in self.seen]


def by_step(rows: list[dict[str, Any]], writers: Mapping[str, int]) -> dict[int, Counter[int]]:
    """Groups that each rollout wrote, by the step that trained them."""
    found: dict[int, Counter[int]] = defaultdict(Counter)
    for row in rows[::EACH]:
        found[int(row["step"].removeprefix("step_"))][writers[row["uid"]]] += 1
    return found


def uids(steps: int) -> list[str]:
    return [f"{group:08d}.{sample:03d}" for group in range(steps * PROMPTS) for sample in range(EACH)]


@pytest.mark.parametrize("bound", [0, 1])
def test_throughput_follows_one_three_one_rollouts_within_a_batch(
    tmp_path: Path, writers: dict[str, int], bound: int
) -> None:
    """Leases made before the change cover at most `bound` + 1 steps; later ones are divided."""
    grown, shrunk, steps = 4, 12, 18
    live = Live(rollout_bound(tmp_path, steps, max_staleness=bound), {grown: {"rollout": 3}, shrunk: {"rollout": 1}})
    assert live.go() == DONE and live.notices == []
    rows, lines = trained(tmp_path), metrics(tmp_path)
    assert [row["uid"] for row in rows] == uids(steps), "each once, in order"
    assert {row["attempt"] for row in rows} == {0}, "leavers finished what they had"
    for step, groups in by_step(rows, writers).items():
        seconds = lines[step - 1]["seconds_step"]
        if 1 < step <= grown:
            assert groups == {0: PROMPTS} and seconds == pytest.approx(PROMPTS * GROUP_SECONDS, rel=0.01)
        elif grown + 1 < step <= shrunk:
            assert seconds == pytest.approx(PROMPTS / 3 * GROUP_SECONDS, rel=0.01)
        elif step > shrunk + 1:
            assert seconds == pytest.approx(PROMPTS * GROUP_SECONDS, rel=0.01)
        if grown + 1 + bound < step <= shrunk:
            assert groups == {0: 2, 1: 2, 2: 2}
        elif step > shrunk + 1 + bound:
            assert len(groups) == 1
    assert_none_aged(tmp_path, bound)
    assert [m.number for m in live.pools["rollout"].members] == [0]


def test_a_leaving_member_keeps_pulling_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its long response, sampled over many steps, is trained and stays within the staleness bound."""
    long = "00000001.000"
    monkeypatch.setattr(rollout, "_length", lambda request, sampling: 100 if request.uid == long else 4)

    async def dismiss(run: Run) -> None:
        pool, attended = run.pools.rollout, run.stage.rollouts.intake._work if run.stage else {}
        assert pool is not None
        writer = next(wanted.member for wanted in attended.values() if long in wanted.running)
        others = [member for member in pool.members if member is not writer]
        for member in others:  # who has least to do is let go
            pool.add_load(member, 1000)
        await pool.members.resize(len(others))
        for member in others:
            pool.remove_load(member, 1000)
        assert writer.leaving

    leaving: list[asyncio.Task[None]] = []

    def after(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] == 1:
            leaving.append(asyncio.get_running_loop().create_task(dismiss(run)))

    settings = recipe(
        tmp_path,
        max_staleness=1,
        on_stale="mask_tokens",
        run={"steps": 20},
        sampling={"max_response_tokens": 100},
        rollout={"members": 3},
        batch={"samples_per_prompt": 1},
    )
    assert Simulation(settings, after, speeds=Speeds(rollout=0.2)).go_in_own_time() == DONE
    leaving[0].result()
    (row,) = [row for row in trained(tmp_path) if row["uid"] == long]
    assert row["attempt"] == 0 and len(set(row["versions"])) > 3
    assert sum(line["samples_aged"] for line in metrics(tmp_path)) == 0


@pytest.mark.parametrize("bound", [0, 1])
def test_another_rollout_brings_the_predicted_gain(tmp_path: Path, writers: dict[str, int], bound: int) -> None:
    live = Live(rollout_bound(tmp_path, 24, max_staleness=bound), {6: {"rollout": 2}, 14: {"rollout": 3}})
    assert live.go() == DONE
    alone, two, three = (live.seen[step - 1]["bottleneck"] for step in (6, 14, 24))
    for before, after in ((alone, two), (two, three)):
        assert before["role"] == "rollout" and before["busy"] == pytest.approx(1.0, abs=0.01)
        predicted = before["samples_per_second"] * (1.0 + before["one_more"]["rollout"])
        assert after["samples_per_second"] == pytest.approx(predicted, rel=0.05)
        assert before["one_more"]["reward"] == before["one_more"]["scorer.teacher"] == 0.0
        assert "learner" not in before["one_more"]
    assert live.seen[6]["bottleneck"] is None, "step 7 was of one rollout and of two"


@pytest.mark.parametrize(("bound", "more"), [(0, 60 / 48 - 1), (1, 0.0)])
def test_behind_a_slow_learner_another_rollout_helps_only_in_alternation(
    tmp_path: Path, writers: dict[str, int], monkeypatch: pytest.MonkeyPatch, bound: int, more: float
) -> None:
    """24 s of sampling and 36 s of learning: 60 s a step in turns, 48 s with two rollouts, and 36 s side by side."""
    step = SimulatedLearner.step

    async def step_slowly(self: SimulatedLearner, *arguments: Any) -> Any:
        await asyncio.sleep(36.0)
        return step(self, *arguments)

    monkeypatch.setattr(SimulatedLearner, "step", step_slowly)
    live = Live(rollout_bound(tmp_path, 12, max_staleness=bound), {6: {"rollout": 2}})
    assert live.go() == DONE
    before, after = (live.seen[index]["bottleneck"] for index in (5, 11))
    assert before["role"] == after["role"] == "learner"
    assert before["busy"] == pytest.approx(1.0 if bound else 0.6, abs=0.02)
    assert before["one_more"]["rollout"] == pytest.approx(more, abs=0.02)
    assert after["samples_per_second"] == pytest.approx(before["samples_per_second"] * (1.0 + more), rel=0.03)


@pytest.mark.parametrize("bound", [0, 1])
def test_autoscaling_grows_the_bottleneck_to_its_bound_and_shrinks_idle_roles(
    tmp_path: Path, writers: dict[str, int], bound: int
) -> None:
    steps, bounds = 30, {"rollout": {"min": 1, "max": 3}, "reward": {"min": 1, "max": 2}}
    live = Live(rollout_bound(tmp_path, steps, max_staleness=bound, autoscale=bounds))
    assert live.go() == DONE
    rollouts = live.sizes("rollout")
    assert rollouts == sorted(rollouts) and set(rollouts) == {1, 2, 3}, rollouts
    assert rollouts.index(2) >= GROW_AFTER and rollouts.index(3) - rollouts.index(2) >= GROW_AFTER, "one at a time"
    assert live.sizes("reward")[-1] == 1 and set(live.sizes("scorer.teacher")) == {2}, "the scorer has no bounds"
    said = [notice.split(" (")[0] for notice in live.notices]
    assert said == ["autoscale: rollout 1 -> 2", "autoscale: rollout 2 -> 3", "autoscale: reward 2 -> 1"]
    assert [row["uid"] for row in trained(tmp_path)] == uids(steps)


def test_nothing_is_decided_while_a_member_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, live = SimulatedRollout.start, Live(rollout_bound(tmp_path, 20, autoscale={"rollout": {"min": 1, "max": 3}}))

    async def start_late(self: SimulatedRollout) -> None:
        await start(self)
        await asyncio.sleep(60 * JUDGED_EVERY if live.seen else 0.0)

    monkeypatch.setattr(SimulatedRollout, "start", start_late)
    assert live.go() == DONE
    assert live.sizes("rollout")[-1] == 2 and live.seen[-1]["members"][1]["state"] == "starting"
    assert len(live.notices) == 1


def test_a_member_without_a_place_is_noticed_and_the_role_keeps_its_size(tmp_path: Path) -> None:
    live = Live(rollout_bound(tmp_path, 20, autoscale={"rollout": {"min": 1, "max": 3}}))
    spec = live.pools["rollout"].startup.spec

    def only_one(number: int) -> GangSpec:
        if number:
            raise RuntimeError("rollout: no place for 1 x {'GPU': 1}")
        return spec(number)

    live.pools["rollout"].startup.spec = only_one
    assert live.go() == DONE
    decided, failed = live.notices
    assert decided.startswith("autoscale: rollout 1 -> 2 (the bottleneck")
    assert failed == "scale: rollout=2 came to nothing: rollout: no place for 1 x {'GPU': 1}"
    assert live.sizes("rollout") == [1] * 20


def test_status_describes_members_and_roles(tmp_path: Path) -> None:
    live = Live(rollout_bound(tmp_path, 6))
    assert live.go() == DONE
    status = live.seen[-1]
    assert (status["step"], status["steps"], status["version"], status["phase"]) == (6, 6, 6, "training")
    assert [member["name"] for member in status["members"]] == [
        *("rollout-0", "scorer.teacher-0", "scorer.teacher-1", "reward-0", "reward-1", "learner-0")
    ]
    first = {"name": "rollout-0", "state": "serving", "version": 6, "load": 0, "restarts": 0, "place": 0}
    assert status["members"][0] == first
    assert [role["role"] for role in status["roles"] if role["elastic"]] == ["rollout", "scorer.teacher", "reward"]
    shares = {role["role"]: (role["busy"], role["waiting"]) for role in status["roles"]}
    assert shares["rollout"] == pytest.approx((1.0, 0.0), abs=0.01)
    assert shares["reward"] == pytest.approx((0.0, 1.0), abs=0.01)
    assert shares["learner"] == pytest.approx((0.0, 1.0), abs=0.01)


def test_labels_of_a_runs_status_have_the_values_that_are_listed(tmp_path: Path) -> None:
    live = Live(rollout_bound(tmp_path, 6))
    assert live.go() == DONE
    listed = {one.name: one for one in FLOW_METRICS if one.values}
    for name, labels, _ in exported.of_status(live.seen[-1]):
        if name in listed:
            assert labels[listed[name].labels[-1]] in listed[name].values, name


# --- members of kinds ---

WIDE = {"wide": {"members": 1, "max_concurrent": 2 * EACH, "resources": {"gpus": 2}}}
MIXED = {"members": 1, "max_concurrent": EACH, "resources": {"gpus": 1}, "kinds": WIDE}


def kinds(status: Mapping[str, Any]) -> Counter[str]:
    return Counter(m.get("kind", "") for m in status["members"] if m["name"].startswith("rollout-"))


def test_scaling_changes_a_roles_own_members_and_keeps_those_of_its_kinds(tmp_path: Path) -> None:
    live = Live(rollout_bound(tmp_path, 12, rollout=MIXED), {3: {"rollout": 3}, 8: {"rollout": 1}})
    assert live.go() == DONE and live.notices == []
    assert [kinds(live.seen[step - 1]) for step in (3, 7, 12)] == [
        {"": 1, "wide": 1},
        {"": 3, "wide": 1},
        {"": 1, "wide": 1},
    ]
    (role,) = [role for role in live.seen[6]["roles"] if role["role"] == "rollout"]
    assert role["members"] == 4, "all of them"


def test_autoscaling_counts_a_roles_own_members(tmp_path: Path) -> None:
    bounds = {"rollout": {"min": 1, "max": 2}}
    live = Live(rollout_bound(tmp_path, 20, rollout=MIXED, autoscale=bounds))
    assert live.go() == DONE
    assert [notice.split(" (")[0] for notice in live.notices] == ["autoscale: rollout 1 -> 2"]
    assert kinds(live.seen[-1]) == {"": 2, "wide": 1}


def test_gpu_seconds_are_those_of_each_member_s_kind(tmp_path: Path) -> None:
    live = Live(rollout_bound(tmp_path, 6, rollout=MIXED))
    assert live.go() == DONE
    spent = live.seen[-1]["totals"]["gpu_seconds"]
    assert spent["rollout"] > 0.0 == spent["reward"]
    assert live.elastic.gpu_seconds()["rollout"] == pytest.approx(3 / 2 * live.elastic._presence["rollout"]), (
        "three GPUs of two members"
    )
