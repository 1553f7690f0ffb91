"""The real Run on simulated members: order, staleness, resume, bad data and deaths.

Everything is in this process. Only what computes is simulated; every decision is the production code's.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import math
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.wire.jobs import Share
from actors.member import Member
from actors.metrics import STEP_METRICS
from actors.wire.records import BadWeights, ScoreHeader, unpack_samples
from actors.simulated.members import SimulatedLearner, SimulatedReward, SimulatedRollout, SimulatedScorer, Speeds
from configs.load import RecipeError
from configs.roles import Resources
from orchestrator.samples.buffer import Scored
from orchestrator.weights.learner_group import LearnerGroup
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.startup import RoleFailed
from orchestrator.samples.prompts import PromptStream
from orchestrator.run import DONE, STOPPED, Run
from orchestrator.pools.transport import GangSpec, LocalTransport, MemberDied, NoPlace, ValueLost
from tests.unit.simulation import (
    GROUPS,
    HELDOUT,
    STEPS,
    TRAIN,
    Simulation,
    assert_each_once,
    crash_at,
    expected_order,
    learned,
    metrics,
    order_of,
    recipe,
    stop_at,
    trained,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    assert Simulation(recipe(root)).go() == DONE
    return root


# --- a run from end to end ---


def test_every_line_has_every_metric_and_nothing_else(uninterrupted: Path) -> None:
    lines = metrics(uninterrupted)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["policy_version"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert list(line) == list(STEP_METRICS)
        assert {line[name] for name in ("forward_kl", "teacher_entropy")} == {None}, "unknown, so null"
        assert all(line[name] >= 0 for name in line if name.startswith(("seconds", "tokens", "bytes")))


def test_counts_agree_with_the_recorded_samples(uninterrupted: Path) -> None:
    rows = trained(uninterrupted)
    for line in metrics(uninterrupted):
        batch = [row for row in rows if row["step"] == f"step_{line['step']:06d}"]
        lengths = [len(row["response_ids"]) for row in batch]
        assert line["tokens_trained"] == sum(lengths)
        assert line["response_length"] == pytest.approx(sum(lengths) / len(lengths))
        assert line["reward_mean"] == pytest.approx(sum(row["reward"] for row in batch) / len(batch))
        assert line["truncated_fraction"] == sum(row["finish"] == "length" for row in batch) / len(batch)
        assert line["samples_dropped"] == 0
    total = sum(len(row["response_ids"]) for row in rows)
    for name in ("tokens_generated", "tokens_scored"):  # between two steps, whichever step they are for
        assert sum(line[name] for line in metrics(uninterrupted)) == total


def test_the_orchestrator_opens_no_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[type] = []
    value = LocalTransport.value

    async def spied(self: LocalTransport, ref: Any) -> Any:
        found = await value(self, ref)
        opened.append(type(found))
        return found

    monkeypatch.setattr(LocalTransport, "value", spied)
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert ScoreHeader in opened
    assert pa.RecordBatch not in opened and np.ndarray not in opened


def test_every_prompt_of_the_order_is_trained_exactly_once_and_in_order(uninterrupted: Path) -> None:
    assert order_of(trained(uninterrupted)) == expected_order()


def test_evaluation_before_and_after_uses_the_same_prompts_and_seeds(uninterrupted: Path) -> None:
    before, after = (trained(uninterrupted, f"eval_{when}") for when in ("before", "after"))
    assert [row["prompt_ids"] for row in before] == [p.ids["student"] for p in HELDOUT]
    assert [row["response_ids"] for row in before] == [row["response_ids"] for row in after]
    summary = json.loads((uninterrupted / "sim" / "summary.json").read_text())
    assert (summary["format"], summary["exit"], summary["steps"]) == (1, DONE, STEPS)
    for when in ("before", "after"):
        assert {"reverse_kl", "entropy", "response_length"} <= summary["evaluation"][when].keys()


@pytest.mark.parametrize(
    ("changes", "speeds"),
    [
        ({"rollout": {"members": 1}}, Speeds()),
        ({"stream": {"coalesce_samples": 64}}, Speeds()),
        ({"rollout": {"max_concurrent": 2}}, Speeds()),
        ({}, Speeds(rollout=1e-4, score=1e-5)),
    ],
    ids=str,
)
def test_neither_members_nor_blocks_nor_speed_change_what_is_learned(
    uninterrupted: Path, tmp_path: Path, changes: dict[str, Any], speeds: Speeds
) -> None:
    assert Simulation(recipe(tmp_path, **changes), speeds=speeds).go() == DONE
    assert learned(tmp_path) == learned(uninterrupted)


def test_two_ranks_share_each_batch(tmp_path: Path) -> None:
    assert Simulation(recipe(tmp_path, learner={"ranks": 2})).go() == DONE
    assert order_of(sorted(trained(tmp_path), key=lambda row: row["uid"])) == expected_order()


# --- staleness ---

SLOW_LEARNER = Speeds(rollout=2e-4, learn=4e-4)


def loss_versions(row: Mapping[str, Any]) -> list[int]:
    """Versions of the tokens that carry loss."""
    return [version for start, end in row["loss_spans"] for version in row["versions"][start:end]]


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_staleness_reaches_its_bound_and_never_passes_it(tmp_path: Path, bound: int) -> None:
    assert Simulation(recipe(tmp_path, max_staleness=bound), speeds=SLOW_LEARNER).go() == DONE
    lines, rows = metrics(tmp_path), trained(tmp_path)
    assert max(line["staleness_max"] for line in lines) == bound
    for line in lines:
        batch = [v for row in rows if row["step"] == f"step_{line['step']:06d}" for v in loss_versions(row)]
        stale = [line["policy_version"] - 1 - v for v in batch]
        assert min(stale) >= 0 and max(stale) == line["staleness_max"] <= bound
        assert line["staleness_mean"] == pytest.approx(sum(stale) / len(stale))
    assert_each_once(tmp_path)


def test_no_member_samples_before_it_has_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, slow = SimulatedRollout.load, []

    async def load_late(self: SimulatedRollout, version: int, *rest: Any) -> int:
        slow.append(self)
        await asyncio.sleep(0.005 if self is slow[0] else 0)
        return await load(self, version, *rest)

    monkeypatch.setattr(SimulatedRollout, "load", load_late)
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert {line["staleness_max"] for line in metrics(tmp_path)} == {0}


def test_a_slow_rollout_is_not_dropped_and_delays_no_other(tmp_path: Path) -> None:
    slow = Speeds(rollout=1e-3, learn=1e-5)
    assert Simulation(recipe(tmp_path, max_staleness=1), speeds=slow).go() == DONE
    assert_each_once(tmp_path)
    assert sum(line["samples_dropped"] for line in metrics(tmp_path)) == 0
    assert all(line["seconds_wait"] > 0 for line in metrics(tmp_path))


def test_every_response_is_scored_and_rewarded_the_moment_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rollout decodes a step's responses side by side, a token a second; a score or a reward takes a minute."""
    leased: dict[str, dict[str, float]] = {"score": {}, "reward": {}}  # when each was, if it is asked about at its end

    def slow(cls: type, method: str) -> None:
        answer = getattr(cls, method)

        async def late(self: Any, payload: Any, *arguments: Any) -> Any:
            (row,) = unpack_samples(payload)
            leased[method][row.uid] = asyncio.get_running_loop().time() - len(row.response_ids)
            await asyncio.sleep(60.0)
            answered = answer(self, payload, *arguments)
            return await answered if inspect.isawaitable(answered) else answered

        monkeypatch.setattr(cls, method, late)

    slow(SimulatedScorer, "score")
    slow(SimulatedReward, "reward")
    rollout = {"members": 1, "max_concurrent": 64}
    settings = recipe(tmp_path, rollout=rollout)
    assert Simulation(settings, speeds=Speeds(rollout=1.0)).go_in_own_time() == DONE
    steps: dict[str, list[dict[str, Any]]] = {}
    for row in trained(tmp_path):
        steps.setdefault(row["step"], []).append(row)
    for rows in steps.values():
        assert len({len(row["response_ids"]) for row in rows}) > 1
        assert len({round(asked[row["uid"]], 3) for asked in leased.values() for row in rows}) == 1


# --- stop, crash, resume ---


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


@pytest.mark.parametrize("bound", [0, 1])
def test_stopped_and_resumed_equals_uninterrupted(uninterrupted: Path, tmp_path: Path, bound: int) -> None:
    settings = recipe(tmp_path, max_staleness=bound)
    first = Simulation(settings, stop_at(3))
    assert first.go() == STOPPED
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]
    assert json.loads((first.directory / "summary.json").read_text())["exit"] == STOPPED
    before = trained(tmp_path, "eval_before")
    assert Simulation(settings).go() == DONE
    assert_whole(tmp_path, uninterrupted, bound)
    assert not (first.directory / "metrics.jsonl.lost").exists(), "a clean stop loses nothing"
    assert trained(tmp_path, "eval_before") == before, "the evaluation before is not made again"
    evaluation = json.loads((first.directory / "summary.json").read_text())["evaluation"]
    assert evaluation["before"] and evaluation["after"]


def test_evaluations_between_steps_survive_a_crash(tmp_path: Path) -> None:
    settings = recipe(tmp_path, checkpoint={"every": 2}, evaluate={"every": 2})
    with pytest.raises(ExceptionGroup):
        Simulation(settings, crash_at(3)).go()
    assert Simulation(settings).go() == DONE
    found = json.loads((tmp_path / "sim" / "summary.json").read_text())["evaluation"]
    assert [line["step"] for line in found["steps"]] == [2, 4]
    assert all(line.keys() == {"step", *found["before"]} for line in found["steps"])


def test_faults_are_counted_over_all_processes_of_a_run(tmp_path: Path) -> None:
    """But not faults of other runs on the same pools."""

    def strike(run: Run, line: Mapping[str, Any]) -> None:
        rollouts, (learner,) = run.pools.rollout, run.pools.learner.members
        assert rollouts is not None
        if line["step"] in (1, 4):
            rollouts.members.replace(rollouts.members[0])
        if line["step"] in (2, 5) and line["step"] not in struck:
            struck.append(line["step"])
            asyncio.get_running_loop().create_task(simulation.transport.kill(learner.actors))
        if line["step"] == 3 and struck == [2]:
            run.stop()

    struck: list[int] = []
    settings = recipe(tmp_path, checkpoint={"every": 1})
    simulation = Simulation(settings, strike)
    assert simulation.go() == STOPPED
    first = json.loads((tmp_path / "sim" / "summary.json").read_text())
    assert (first["restarts"], first["learner_rebuilds"]) == ({"rollout": 1}, 1)
    simulation = Simulation(settings, strike)
    assert simulation.pools.rollout is not None
    simulation.pools.rollout.members.restarts = 7
    simulation.run = Run(settings, simulation.directory, simulation.inputs, simulation.pools, simulation)
    assert simulation.go() == DONE
    both = json.loads((tmp_path / "sim" / "summary.json").read_text())
    assert (both["restarts"], both["learner_rebuilds"]) == ({"rollout": 2}, 2)


def test_a_resume_keeps_how_often_a_group_aged(tmp_path: Path) -> None:
    settings, aged, seen = recipe(tmp_path, max_staleness=2), GROUPS * STEPS - 1, []

    def age(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] == 2:
            run.progress.drops[aged] += 3
            run.stop()

    assert Simulation(settings, age).go() == STOPPED
    resumed = Simulation(settings, lambda run, line: seen.append(dict(run.progress.drops)))
    assert resumed.go() == DONE
    assert seen[0][aged] == 3 and aged not in seen[-1]


def test_the_phase_is_training_again_after_a_checkpoint_and_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation, phases, seen = Simulation(recipe(tmp_path, evaluate={"every": 3})), [""], []
    monkeypatch.setattr(simulation, "phase", phases.append)
    step = SimulatedLearner.step

    def watched(learner: SimulatedLearner, share: Share) -> dict[str, Any]:
        seen.append(phases[-1])
        return step(learner, share)

    monkeypatch.setattr(SimulatedLearner, "step", watched)
    assert simulation.go() == DONE
    assert seen == ["training"] * STEPS and "saving step 2" in phases


def test_stopped_before_the_first_step_and_resumed(uninterrupted: Path, tmp_path: Path) -> None:
    first = Simulation(recipe(tmp_path))
    first.run.stop()
    assert first.go() == STOPPED
    assert not (first.directory / "metrics.jsonl").exists()
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert_whole(tmp_path, uninterrupted)


def test_a_resume_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    assert Simulation(recipe(tmp_path), stop_at(2)).go() == STOPPED
    before = {file: file.read_bytes() for file in (tmp_path / "sim").rglob("*") if file.is_file()}
    with pytest.raises(RecipeError, match=r"learner\.ranks: 2, but .*step_2 was saved by 1; resume with as many"):
        Simulation(recipe(tmp_path, learner={"ranks": 2})).go()
    assert {file: file.read_bytes() for file in (tmp_path / "sim").rglob("*") if file.is_file()} == before


def test_stopped_at_every_step_and_resumed(uninterrupted: Path, tmp_path: Path) -> None:
    codes = [Simulation(recipe(tmp_path), stop_at(step)).go() for step in range(1, STEPS + 1)]
    assert codes == [STOPPED] * STEPS, "in the last one its evaluation and its model are to come"
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert_whole(tmp_path, uninterrupted)


@pytest.mark.parametrize("bound", [0, 1])
@pytest.mark.parametrize("step", [1, 5])
def test_after_a_crash_the_run_goes_on_from_its_checkpoint(uninterrupted: Path, tmp_path: Path, step: int, bound: int) -> None:
    settings = recipe(tmp_path, max_staleness=bound)
    with pytest.raises(ExceptionGroup) as error:
        Simulation(settings, crash_at(step)).go()
    assert error.group_contains(RuntimeError, match="pulled the plug")
    assert Simulation(settings).go() == DONE
    assert_whole(tmp_path, uninterrupted, bound)
    lost = (tmp_path / "sim" / "metrics.jsonl.lost").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lost] == [step]
    assert_sampled_with_newer(tmp_path, range(step, STEPS + 1), than=step)


def test_a_version_that_was_published_but_not_recorded_is_not_used_again(uninterrupted: Path, tmp_path: Path) -> None:
    published: list[int] = []

    def crash_before_line_five(run: Run, line: Mapping[str, Any]) -> None:
        async def crash(_: Mapping[str, Any]) -> None:
            assert run.roles.versions.current is not None
            published.append(run.roles.versions.current.number)
            raise RuntimeError("pulled the plug")

        if line["step"] == 4 and run.stage is not None:
            run.stage.after_step = crash

    with pytest.raises(ExceptionGroup):
        Simulation(recipe(tmp_path), crash_before_line_five).go()
    assert published == [5] and metrics(tmp_path)[-1]["policy_version"] == 4
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert_whole(tmp_path, uninterrupted)
    assert_sampled_with_newer(tmp_path, range(5, STEPS + 1), than=5)


def lose_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").unlink()


def change_a_byte(folder: Path) -> None:
    file = next((folder / "simulated").iterdir())
    file.write_text(file.read_text().replace("1", "2"))


@pytest.mark.parametrize("damage", [lose_manifest, change_a_byte])
def test_a_damaged_checkpoint_is_ignored(
    uninterrupted: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with pytest.raises(ExceptionGroup):
        Simulation(recipe(tmp_path), crash_at(5)).go()
    damage(tmp_path / "sim" / "checkpoints" / "step_4")
    again: list[int] = []
    assert Simulation(recipe(tmp_path), lambda _, line: again.append(line["step"])).go() == DONE
    assert again == [3, 4, 5, 6]
    assert_whole(tmp_path, uninterrupted)
    lost = (tmp_path / "sim" / "metrics.jsonl.lost").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lost] == [3, 4, 5]
    assert_sampled_with_newer(tmp_path, range(3, STEPS + 1), than=5)


# --- bad data ---


def test_rejected_samples_are_dropped_and_counted_and_training_goes_on(tmp_path: Path) -> None:
    """Token 50 lies beyond a vocabulary of 50; simulated responses hold it now and then."""
    assert Simulation(recipe(tmp_path), vocabulary=50).go() == DONE
    rows, lines = trained(tmp_path), metrics(tmp_path)
    dropped = sum(line["samples_dropped"] for line in lines)
    assert 0 < dropped < len(expected_order()) and dropped == len(expected_order()) - len(rows)
    assert all(50 not in row["response_ids"] for row in rows)
    summary, order = json.loads((tmp_path / "sim" / "summary.json").read_text()), PromptStream(TRAIN, 5, True)
    groups = {uid.split(".")[0] for uid in summary["skipped"] if not uid.startswith("9")}  # 9...: held out
    of_training = {group: text for group, text in summary["skipped_prompts"].items() if not group.startswith("9")}
    assert of_training == {group: order[int(group)].row["prompt"] for group in groups} and groups
    assert [row for row in expected_order() if row in order_of(rows)] == order_of(rows)
    assert len(lines) == STEPS and all(math.isfinite(line["loss"]) for line in lines)


def test_a_skipped_held_out_prompt_is_named_by_its_text(tmp_path: Path) -> None:
    simulation = Simulation(recipe(tmp_path))
    simulation.directory.mkdir(parents=True)
    simulation.run.progress.skipped["90000001.000"] = "quarantined"
    asyncio.run(simulation.run.summarise(1))
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["skipped_prompts"] == {"90000001": HELDOUT[1].row["prompt"]}


def test_a_batch_of_which_every_sample_is_rejected_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as error:
        Simulation(recipe(tmp_path, run={"steps": 2}), vocabulary=1).go()
    assert error.group_contains(RuntimeError, match="every sample of the last 16 prompt groups was rejected")


# --- deaths ---


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


@pytest.mark.parametrize("bound", [0, 1])
def test_a_rollout_that_dies_in_mid_lease_is_leased_again(tmp_path: Path, bound: int) -> None:
    simulation = Simulation(
        recipe(tmp_path, max_staleness=bound, on_stale="wait"), Assassin("rollout", has_yielded), speeds=VISIBLE)
    assert simulation.go() == DONE
    rows, pool = trained(tmp_path), simulation.pools.rollout
    assert_each_once(tmp_path)
    assert {row["attempt"] for row in rows} == {0, 1}
    assert pool is not None and pool.members.restarts == 1 and len(pool.members.serving()) == 2
    assert max(line["staleness_max"] for line in metrics(tmp_path)) <= bound


def test_blocks_that_a_dying_rollout_yielded_are_kept(tmp_path: Path) -> None:
    """Only unfinished responses get a second attempt; earlier blocks of the lease are trained as they are."""
    alone = recipe(tmp_path, rollout={"members": 1})
    assert Simulation(alone, Assassin("rollout", has_yielded), speeds=VISIBLE).go() == DONE
    rows = trained(tmp_path)
    (step,) = {row["step"] for row in rows if row["attempt"]}
    assert {row["attempt"] for row in rows if row["step"] == step} == {0, 1}
    generated = sum(line["tokens_generated"] for line in metrics(tmp_path))
    assert generated == sum(len(row["response_ids"]) for row in rows), "nothing that was yielded is sampled again"


def test_a_replacement_serves_the_current_version(tmp_path: Path) -> None:
    alone = recipe(tmp_path, rollout={"members": 1})
    assert Simulation(alone, Assassin("rollout", has_yielded), speeds=VISIBLE).go() == DONE
    assert {line["staleness_max"] for line in metrics(tmp_path)} == {0}


@pytest.mark.parametrize("role", ["scorer.teacher", "reward"])
def test_a_death_of_a_stateless_member_changes_nothing(uninterrupted: Path, tmp_path: Path, role: str) -> None:
    assassin = Assassin(role, lambda run, member: member.load > 0 if role != "reward" else True)
    simulation = Simulation(recipe(tmp_path), assassin, speeds=VISIBLE)
    assert simulation.go() == DONE
    assert learned(tmp_path) == learned(uninterrupted)
    pool = simulation.pools.all()[role]
    assert pool.members.restarts == 1 and len(pool.members.serving()) == 2


def test_samples_of_a_rollout_that_dies_in_an_evaluation_are_resampled(uninterrupted: Path, tmp_path: Path) -> None:
    simulation = Simulation(recipe(tmp_path), speeds=VISIBLE)
    pool = simulation.pools.rollout
    assert pool is not None

    async def both() -> int:
        killing = asyncio.create_task(kill_when(simulation.transport, pool, lambda member: member.load > 0))
        code = await simulation.run.execute()
        await killing
        return code

    assert asyncio.run(both()) == DONE
    assert pool.members.restarts == 1
    assert [row["uid"] for row in trained(tmp_path, "eval_before")] == [
        row["uid"] for row in trained(uninterrupted, "eval_before")
    ]


def kill_the_learner(run: Run) -> None:
    pool = run.pools.learner
    asyncio.get_running_loop().create_task(pool.transport.kill(pool.members[0].actors))


@pytest.mark.parametrize("bound", [0, 1])
def test_a_dead_learner_is_rebuilt_from_its_checkpoint_and_nothing_is_lost(
    uninterrupted: Path, tmp_path: Path, bound: int
) -> None:
    deaths: list[int] = []

    def kill_once(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] == 3 and not deaths:
            deaths.append(line["policy_version"])
            kill_the_learner(run)

    simulation = Simulation(recipe(tmp_path, max_staleness=bound), kill_once)
    assert simulation.go() == DONE
    assert_whole(tmp_path, uninterrupted, bound)
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["learner_rebuilds"] == 1 and any("rebuilt" in notice for notice in simulation.notices)
    lost = (simulation.directory / "metrics.jsonl.lost").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lost] == [3], "back to the checkpoint of step 2"
    assert_sampled_with_newer(tmp_path, range(3, STEPS + 1), than=deaths[0])


def test_payloads_in_flight_to_a_dead_learner_are_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback's frames would keep its payloads in the object store. Garbage collection is rare in a driver, and off
    here."""
    given: list[weakref.ref[Any]] = []  # a payload of each batch that a learner was given
    held: list[int] = []  # how many were held when a step was done
    step = LearnerGroup.step

    async def noted(self: LearnerGroup, batch: Sequence[Scored], *arguments: Any, **named: Any) -> Any:
        given.append(weakref.ref(batch[0].samples))
        return await step(self, batch, *arguments, **named)

    def on_step(run: Run, line: Mapping[str, Any]) -> None:
        held.append(sum(payload() is not None for payload in given))
        if line["step"] == 3 and len(held) == 3:
            kill_the_learner(run)

    monkeypatch.setattr(LearnerGroup, "step", noted)
    simulation = Simulation(recipe(tmp_path, max_staleness=1), on_step)
    gc.disable()
    try:
        assert simulation.go() == DONE
    finally:
        gc.enable()
    assert simulation.run._deaths == [3]
    assert held == [1] * len(held), "the batch of the step alone"


def test_a_learner_that_dies_before_its_first_checkpoint_restarts_from_the_beginning(uninterrupted: Path, tmp_path: Path) -> None:
    deaths: list[int] = []

    def kill_once(run: Run, line: Mapping[str, Any]) -> None:
        if not deaths:
            deaths.append(1)
            kill_the_learner(run)

    assert Simulation(recipe(tmp_path), kill_once).go() == DONE
    assert_whole(tmp_path, uninterrupted)


def test_a_rank_that_hangs_while_others_publish_is_found_by_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 has published: without ZeRO-3 it does not wait for other ranks."""
    publish, asked = SimulatedLearner.publish, list[int]()

    async def hanging(self: SimulatedLearner, model: str | None = None) -> AsyncIterator[Any]:
        asked.append(self._rank)
        if self._rank == 1 and asked.count(1) == 3:
            await asyncio.Event().wait()
        for part in publish(self, model):
            yield part

    monkeypatch.setattr(SimulatedLearner, "publish", hanging)
    simulation = Simulation(recipe(tmp_path, learner={"ranks": 2}, deadlines={"learn": 0.3}))
    assert simulation.go() == DONE
    assert any("gave no answer to publish in 0.3 s" in notice for notice in simulation.notices)
    assert_each_once(tmp_path)


class FailingTwice(LocalTransport):
    """The first two rebuilt learners die while they start."""

    spawned = 0

    async def spawn(self, spec: GangSpec) -> Any:
        self.spawned += spec.cls is SimulatedLearner
        if spec.cls is SimulatedLearner and self.spawned in (2, 3):
            raise MemberDied("no room yet")
        return await super().spawn(spec)


@pytest.mark.parametrize("found", [False, True])
def test_a_learner_that_dies_while_it_is_rebuilt_is_rebuilt_again(tmp_path: Path, found: bool) -> None:
    """Whether the run started the first learner, or found it running."""
    deaths: list[int] = []

    def kill_once(run: Run, line: Mapping[str, Any]) -> None:
        if not deaths:
            deaths.append(1)
            kill_the_learner(run)

    simulation = Simulation(recipe(tmp_path), kill_once, transport=FailingTwice())

    async def story() -> int:
        if found:
            await simulation.pools.learner.members.start(1)
        return await simulation.run.execute()

    assert asyncio.run(asyncio.wait_for(story(), 20.0)) == DONE
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["learner_rebuilds"] == 2


def test_a_learner_that_dies_while_the_run_starts_leaves_no_role_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two rollouts is up by then, the other is starting."""
    start, starting, deaths = SimulatedLearner.start, list[int](), list[int]()

    async def slowly(self: SimulatedRollout) -> None:
        starting.append(1)
        await asyncio.sleep(0.0 if len(starting) % 2 else 60.0)

    async def fatally(self: SimulatedLearner, *arguments: Any) -> None:
        await asyncio.sleep(30.0)
        deaths.append(1)
        if len(deaths) == 1:
            raise MemberDied("out of memory")
        start(self, *arguments)

    monkeypatch.setattr(SimulatedRollout, "start", slowly)
    monkeypatch.setattr(SimulatedLearner, "start", fatally)
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go_in_own_time() == DONE
    assert simulation.pools.rollout is not None and len(simulation.pools.rollout.members.serving()) == 2
    assert json.loads((tmp_path / "sim" / "summary.json").read_text())["learner_rebuilds"] == 1
    assert_each_once(tmp_path)


def test_a_step_that_kills_every_learner_ends_the_run_with_a_message(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SimulatedLearner.step

    def fatal(self: SimulatedLearner, share: Share) -> Any:
        if share.step == 4:
            raise MemberDied("out of memory")
        return step(self, share)

    with monkeypatch.context() as patch, pytest.raises(RoleFailed, match="learner died in step: out of memory"):
        patch.setattr(SimulatedLearner, "step", fatal)
        Simulation(recipe(tmp_path)).go()
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert_whole(tmp_path, uninterrupted)


def test_learners_that_die_at_different_steps_without_progress_end_the_run(tmp_path: Path) -> None:
    """Each death returns to the start, and no attempt gets further than the first."""
    ends = [4, 2, 3]

    def kill(run: Run, line: Mapping[str, Any]) -> None:
        if ends and line["step"] == ends[0]:
            ends.pop(0)
            kill_the_learner(run)

    with pytest.raises(RoleFailed, match="learner died"):
        Simulation(recipe(tmp_path, checkpoint={"every": 0}), kill).go()
    assert not ends


def test_a_learner_may_die_after_every_new_step(uninterrupted: Path, tmp_path: Path) -> None:
    killed: set[int] = set()

    def kill(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] < STEPS and line["step"] not in killed:
            killed.add(line["step"])
            kill_the_learner(run)

    assert Simulation(recipe(tmp_path, checkpoint={"every": 1}), kill).go() == DONE
    assert killed == set(range(1, STEPS))
    assert_whole(tmp_path, uninterrupted)


def test_a_member_that_leaves_between_grant_and_lease_is_no_failure(tmp_path: Path) -> None:
    """As when a pull or another lease finds it dead, or `scale` ends it, in the same iteration of the event loop."""

    def leave_once(run: Run, line: Mapping[str, Any]) -> None:
        stage, pool = run.stage, run.pools.rollout
        if line["step"] != 2 or stage is None or pool is None:
            return
        grant = stage.dispatch.grant

        def grant_and_leave(*arguments: Any) -> Any:
            leases = grant(*arguments)
            if leases and not pool.members.restarts:
                pool.members.replace(next(m for m in pool.members if m.number == leases[0].member))
            return leases

        stage.dispatch.grant = grant_and_leave  # type: ignore[method-assign]

    assert Simulation(recipe(tmp_path), leave_once).go() == DONE
    assert order_of(trained(tmp_path)) == expected_order()


def test_a_rollout_that_cannot_be_replaced_ends_the_run(tmp_path: Path) -> None:
    simulation = Simulation(
        recipe(tmp_path, rollout={"members": 1}), Assassin("rollout", has_yielded), speeds=VISIBLE)
    pool = simulation.pools.rollout
    assert pool is not None
    spec = pool.startup.spec

    def only_once(number: int) -> GangSpec:
        if number:
            raise RuntimeError("no place for rollout-1")
        return spec(number)

    pool.startup.spec = only_once
    with pytest.raises(ExceptionGroup) as error:
        simulation.go(seconds=3.0)
    assert error.group_contains(RuntimeError, match="no place for rollout-1")


@pytest.mark.parametrize("members", [1, 2])
def test_a_rollout_whose_node_is_gone_for_a_while_is_replaced_when_it_is_back_unless_nobody_else_serves(
    tmp_path: Path, members: int
) -> None:
    class Crowded(LocalTransport):
        tries = 0

        async def spawn(self, spec: GangSpec) -> Any:
            if spec.cls is SimulatedRollout and deaths:
                self.tries += 1
                await asyncio.sleep(1.0)
                if self.tries <= 3:
                    raise NoPlace("rollout: no place for 1 x {'GPU': 1}")
            return await super().spawn(spec)

    def strike(run: Run, line: Mapping[str, Any]) -> None:
        if not deaths and run.pools.rollout is not None:
            deaths.append(1)
            run.pools.rollout.members.replace(run.pools.rollout.members[0])

    deaths: list[int] = []
    settings = recipe(tmp_path, rollout={"members": members})
    simulation = Simulation(settings, strike, transport=Crowded(), speeds=Speeds(rollout=0.1))
    if members == 1:
        with pytest.raises(ExceptionGroup) as error:
            simulation.go_in_own_time()
        assert error.group_contains(NoPlace, match="no place for 1 x")
        return
    assert simulation.go_in_own_time() == DONE
    assert simulation.pools.rollout is not None and len(simulation.pools.rollout.members.serving()) == 2
    assert sum("tried again" in notice for notice in simulation.notices) == 3
    assert_each_once(tmp_path)


def test_a_member_whose_load_raises_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, failed = SimulatedRollout.load, []

    async def fail_once(self: SimulatedRollout, version: int, *rest: Any) -> int:
        if version == 2 and not failed:
            failed.append(self)
            raise BadWeights("version 2 changed on the way")
        return await load(self, version, *rest)

    monkeypatch.setattr(SimulatedRollout, "load", fail_once)
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go() == DONE
    assert simulation.pools.rollout is not None and simulation.pools.rollout.members.restarts == 1


def lose_a_value(monkeypatch: pytest.MonkeyPatch, cls: type, method: str, call: int) -> None:
    """The `call`-th call of a method finds its payload lost with a node."""
    whole, calls = getattr(cls, method), []

    def losing(self: Any, *args: Any) -> Any:
        calls.append(self)
        if len(calls) == call:
            raise ValueLost("the node that held it is gone")
        return whole(self, *args)

    monkeypatch.setattr(cls, method, losing)


@pytest.mark.parametrize(
    ("cls", "method", "call"),
    [
        pytest.param(SimulatedScorer, "score", 20, id="on the way to a scorer"),
        pytest.param(SimulatedReward, "reward", 20, id="on the way to a reward worker"),
        pytest.param(
            SimulatedScorer,
            "score",
            1,
            id="in an evaluation",
        ),
    ],
)
def test_samples_lost_with_a_node_are_resampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type, method: str, call: int
) -> None:
    lose_a_value(monkeypatch, cls, method, call)
    assert Simulation(recipe(tmp_path)).go() == DONE
    assert order_of(trained(tmp_path)) == expected_order()
    in_training = call == 20
    assert sum(row["attempt"] for row in trained(tmp_path)) == in_training


# --- a pool by itself ---


class Echo(Member):
    async def start(self) -> None: ...

    async def slowly(self, value: int) -> tuple[int, int]:
        await asyncio.sleep(0.005)
        return value, value + 1

    async def load(self, version: int, *rest: Any) -> int:
        return version


def echoes(transport: LocalTransport) -> Pool:
    return Pool("echo", transport, lambda number: GangSpec("echo", Echo, ((),), Resources()))


async def settled(pool: Pool, size: int) -> None:
    async with asyncio.timeout(2):
        while len(pool.members.serving()) != size:
            await asyncio.sleep(0.001)


def test_a_call_is_made_again_on_another_member() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)
        await pool.members.start(2)
        first, second = pool.members
        killing = asyncio.create_task(kill_when(transport, pool, lambda member: member.load > 0))
        ref, value = await pool.call("slowly", 4, load=10, returns=2)
        await killing
        assert (await transport.value(ref), value) == (4, 5)
        assert first not in pool.members and second in pool.members and second.load == 0
        await settled(pool, 2)
        assert pool.members.restarts == 1

    asyncio.run(story())


def test_a_call_waits_for_a_replacement_when_nobody_serves() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)
        await pool.members.start(1)
        await transport.kill(pool.members[0].actors)
        assert await pool.call("slowly", 4) == [(4, 5)]

    asyncio.run(story())


def test_a_call_that_kills_every_member_fails_with_a_message() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)

        class Fragile(Echo):
            async def slowly(self, value: int) -> tuple[int, int]:
                raise MemberDied("out of memory")

        pool.startup.spec = lambda number: GangSpec("echo", Fragile, ((),), Resources())
        await pool.members.start(2)
        with pytest.raises(RoleFailed, match="echo: slowly failed on 3 members; out of memory"):
            await pool.call("slowly", 4)

    asyncio.run(story())


def test_calls_go_to_the_member_with_the_least_load() -> None:
    async def story() -> None:
        pool = echoes(LocalTransport())
        await pool.members.start(2)
        calls = [asyncio.create_task(pool.call("slowly", 1, load=load)) for load in (5, 1, 1, 1)]
        await asyncio.sleep(0.001)
        assert [member.load for member in pool.members] == [5, 3]
        await asyncio.gather(*calls)
        assert [member.load for member in pool.members] == [0, 0]

    asyncio.run(story())


def test_a_pool_grows_and_shrinks_and_a_leaver_finishes_first() -> None:
    async def story() -> None:
        pool = echoes(LocalTransport())
        await pool.members.start(1)
        await pool.members.resize(3)
        assert len(pool.members.serving()) == 3
        calls = [asyncio.create_task(pool.call("slowly", i)) for i in range(3)]
        await asyncio.sleep(0.001)
        await pool.members.resize(1)
        assert await asyncio.gather(*calls) == [[(0, 1)], [(1, 2)], [(2, 3)]]
        await settled(pool, 1)

    asyncio.run(story())


def test_a_leaver_that_dies_is_not_replaced() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)
        await pool.members.start(2)
        calls = [asyncio.create_task(pool.call("slowly", i)) for i in range(2)]
        await asyncio.sleep(0.001)
        await pool.members.resize(1)
        await kill_when(transport, pool, lambda member: not member.serving)
        await asyncio.gather(*calls)
        await asyncio.sleep(0.1)
        assert len(pool.members.serving()) == 1

    asyncio.run(story())


def test_a_joiner_that_dies_in_its_first_pull_is_replaced_or_named() -> None:
    async def story() -> None:
        transport = LocalTransport()
        pool = echoes(transport)

        async def admit(member: PoolMember) -> None:
            if member.number == 0:
                await transport.kill(member.actors)
            await pool.call_member(member, "load", 1)

        pool.startup.admit = admit
        try:
            await pool.members.start(1)
        except RoleFailed:
            return
        await settled(pool, 1)

    asyncio.run(story())


def test_a_new_member_is_not_taken_for_a_dead_one() -> None:
    async def story() -> None:
        transport = LocalTransport()
        spec = GangSpec("echo", Echo, ((),), Resources())
        for _ in range(50):
            actors = await transport.spawn(spec)
            await transport.value(transport.call(actors[0], "ping")[0])
            await transport.kill(actors)
            del actors

    asyncio.run(story())
