"""A run that is stopped or crashes goes on from its newest whole checkpoint, and ends as one that never stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.learner import SimulatedLearner
from actors.wire.jobs import Share
from configs.load import RecipeError
from orchestrator.run import DONE, STOPPED, Run
from tests.unit.runs.deaths import assert_sampled_with_newer, assert_whole
from tests.unit.simulation import (
    GROUPS,
    STEPS,
    Simulation,
    crash_at,
    metrics,
    recipe,
    stop_at,
    trained,
)


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
def test_after_a_crash_the_run_goes_on_from_its_checkpoint(
    uninterrupted: Path, tmp_path: Path, step: int, bound: int
) -> None:
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
def test_a_damaged_checkpoint_is_ignored(uninterrupted: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
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
