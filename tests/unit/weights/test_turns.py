"""Learner and engines on shared GPUs: in whole simulated runs, every member notes when it holds memory and works. A
learner never holds memory beside an engine, no member works while asleep, and the run learns the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from orchestrator.pools.startup import RoleFailed
from orchestrator.pools.transport import ValueLost
from orchestrator.run import DONE, STOPPED
from orchestrator.weights.turns import Colocated
from tests.unit.simulation import STEPS, Simulation, assert_each_once, learned, metrics, recipe, stop_at
from tests.unit.weights.one_gpu import Gpu, Learner, gpu, simulated

__all__ = ["gpu"]

ALONE = {
    "rollout": {"members": 1},
    "scorer": {"teacher": {"members": 1}},
    "reward": {"members": 1, "rules": [{"kind": "length", "low": 1, "high": 8}]},
}
ENGINES = ("rollout", "scorer", "reward")
TO_THE_LEARNER = [*(f"drain {e}" for e in ENGINES), *(f"sleep {e}" for e in ENGINES), "wake learner"]
TO_THE_ENGINES = ["sleep learner", *(f"wake {e}" for e in ENGINES)]
SAMPLING = ["sample"]
EVALUATION = [*SAMPLING, *TO_THE_LEARNER, "evaluate learner", *TO_THE_ENGINES]
GREEDY = EVALUATION  # the greedy answers take the path of an evaluation
STEP = [*SAMPLING, *TO_THE_LEARNER, "step learner", "publish learner", *TO_THE_ENGINES, "load rollout"]
SAVE = [*TO_THE_LEARNER, "save learner", *TO_THE_ENGINES]
EXPORT = [*TO_THE_LEARNER, "export learner", *TO_THE_ENGINES]


def told(gpu: Gpu) -> list[str]:
    """The calls in order, with sampling and scoring as one word."""
    words = ("sample" if line.startswith("sample") else line for line in gpu.lines)
    return [word for word, _ in groupby(words)]


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What a learner with GPUs of its own learns."""
    root = tmp_path_factory.mktemp("apart")
    assert Simulation(recipe(root)).go() == DONE
    return learned(root)


def test_a_colocated_run_calls_its_members_in_the_order_of_its_turns(gpu: Gpu, tmp_path: Path) -> None:
    """The learner is built and asleep before an engine starts. A step's evaluation and checkpoint come before the next
    lease; weights are loaded once the engines are awake."""
    once: dict[str, Any] = {"run": {"steps": 2}, "checkpoint": {"every": 1}, "evaluate": {"every": 1}}
    assert simulated(tmp_path, **(ALONE | once)).go() == DONE
    starts = ["start learner", "publish learner", "sleep learner", "start rollout", "load rollout"]
    assert told(gpu) == [
        *(*starts, "start scorer", "start reward", *EVALUATION, *GREEDY),
        *(*STEP, *EVALUATION, *SAVE),
        *(*STEP, *SAVE, *EVALUATION, *GREEDY, *EXPORT),
    ]
    assert not gpu.faults


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluate": {"every": 2}, "checkpoint": {"every": 1}},
        {"stream_tokens": 4},
        {"speeds": Speeds(rollout=1e-4, score=1e-5)},
        {"rollout": {"max_concurrent": 2}},
    ],
    ids=str,
)
def test_a_run_with_turns_learns_the_same(
    gpu: Gpu, apart: list[list[Any]], tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert simulated(tmp_path, **changes).go() == DONE
    assert learned(tmp_path) == apart and not gpu.faults


def test_a_stopped_run_resumes_with_turns(gpu: Gpu, apart: list[list[Any]], tmp_path: Path) -> None:
    assert simulated(tmp_path, stop_at(3)).go() == STOPPED
    assert sorted({holder.role for holder in gpu.holders}) == ["reward", "rollout", "scorer"]
    gpu.holders.clear()  # the processes have ended
    assert simulated(tmp_path).go() == DONE
    assert learned(tmp_path) == apart and not gpu.faults
    resumed = gpu.lines[len(gpu.lines) - gpu.lines[::-1].index("start learner") - 1 :]
    assert resumed[:4] == ["start learner", "restore learner", "publish learner", "sleep learner"]


def kill(simulation: Simulation, role: str) -> Callable[[], None]:
    """Ends the first member of a role as soon as others may move."""

    def befall() -> None:
        victim = simulation.pools.all()[role].members[0]
        asyncio.get_running_loop().create_task(simulation.transport.kill(victim.actors))

    return befall


def resize(simulation: Simulation, size: int) -> Callable[[], None]:
    return lambda: (
        asyncio.get_running_loop().create_task(simulation.pools.all()["rollout"].members.resize(size)) and None
    )


def nothing() -> None: ...


@pytest.mark.parametrize("line", ["step learner", "wake learner", "sleep rollout", "wake rollout", "sample rollout"])
@pytest.mark.parametrize("role", ["rollout", "scorer.teacher"])
def test_a_member_that_dies_is_replaced_in_the_engines_turn(
    gpu: Gpu, apart: list[list[Any]], tmp_path: Path, line: str, role: str
) -> None:
    simulation = simulated(tmp_path)
    gpu.befalls[line] = [nothing] * 4 + [kill(simulation, role)]
    assert simulation.go() == DONE
    assert simulation.pools.all()[role].members.restarts == 1 and not gpu.faults
    assert_each_once(tmp_path)
    if line != "sample rollout":  # else it is sampled again, with another seed
        assert learned(tmp_path) == apart


def test_members_that_join_or_leave_in_the_learners_turn_wait_for_the_engines_turn(
    gpu: Gpu, apart: list[list[Any]], tmp_path: Path
) -> None:
    simulation = simulated(tmp_path)
    gpu.befalls["step learner"] = [nothing, resize(simulation, 4), nothing, resize(simulation, 1)]
    assert simulation.go() == DONE
    assert gpu.lines.count("start rollout") == 4 and len(simulation.pools.all()["rollout"].members.serving()) == 1
    assert learned(tmp_path) == apart and not gpu.faults


@pytest.mark.parametrize("slow", ["start_seconds", "load_seconds"])
def test_the_learner_waits_for_engines_that_start_or_load(
    gpu: Gpu, apart: list[list[Any]], tmp_path: Path, slow: str
) -> None:
    simulation = simulated(tmp_path)
    setattr(gpu, slow, 0.03)  # longer than a step's sampling
    gpu.befalls["sample rollout"] = [nothing] * 4 + [resize(simulation, 3)]
    assert simulation.go() == DONE
    assert gpu.lines.count("start rollout") == 3
    assert learned(tmp_path) == apart and not gpu.faults


@pytest.mark.parametrize(
    "line", ["step learner", "publish learner", "save learner", "sleep learner", "wake learner", "sample scorer"]
)
def test_a_dead_learner_is_rebuilt_while_the_engines_sleep(
    gpu: Gpu, apart: list[list[Any]], tmp_path: Path, line: str
) -> None:
    simulation = simulated(tmp_path)
    gpu.befalls[line] = [nothing] * 2 + [kill(simulation, "learner")]
    assert simulation.go() == DONE
    assert gpu.lines.count("start learner") == 2 and learned(tmp_path) == apart and not gpu.faults
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, STEPS + 1))


def test_a_learner_that_cannot_be_rebuilt_ends_the_run_with_a_message(gpu: Gpu, tmp_path: Path) -> None:
    simulation = simulated(tmp_path)
    gpu.befalls["step learner"] = [kill(simulation, "learner")] * 3
    with pytest.raises(RoleFailed, match="learner died in step"):
        simulation.go()
    assert not gpu.faults


@pytest.mark.parametrize("on_fail", ["hold", "rollback", "stop"])
def test_evaluations_of_the_length_curriculum_take_turns(gpu: Gpu, tmp_path: Path, on_fail: str) -> None:
    gate = {"eval_length": 1, "minimum": 0.5, "truncation": 0.9, "on_fail": on_fail}  # which fails at once
    objective = {"length": {"caps": [4, 8], "steps_per_stage": 2, "gate": gate}}
    assert Simulation(recipe(tmp_path / "apart", objective=objective, data={"heldout": "/none"})).go() == DONE
    gpu.holders.clear()
    gpu.lines.clear()
    gpu.faults.clear()
    assert simulated(tmp_path / "turns", objective=objective).go() == DONE
    assert learned(tmp_path / "turns") == learned(tmp_path / "apart") and not gpu.faults
    assert gpu.lines.count("restore learner") == (on_fail == "rollback")


@pytest.mark.parametrize(
    "weights", [{"weights": "live", "system": "Think."}, {"weights": "ema", "decay": 0.9}], ids=str
)
def test_teachers_that_follow_the_student_load_in_the_engines_turn(
    gpu: Gpu, tmp_path: Path, weights: dict[str, Any]
) -> None:
    objective = {"target": "teacher", "support": "full"}
    assert simulated(tmp_path, objective=objective, models={"teacher": weights}, **ALONE).go() == DONE
    assert not gpu.faults
    published = gpu.lines.index("publish learner", gpu.lines.index("step learner"))
    after = gpu.lines[published + 1 :][: len(TO_THE_ENGINES) + 2]
    assert after[: len(TO_THE_ENGINES)] == TO_THE_ENGINES and {*after[-2:]} == {"load scorer", "load rollout"}
    assert gpu.lines.count("step learner") == STEPS and gpu.lines.count("wake learner") == STEPS + 8


@pytest.mark.parametrize("fails", ["fetch learner", "load rollout"])
def test_payloads_and_versions_lost_with_a_node_are_made_again_in_turns(
    gpu: Gpu, apart: list[list[Any]], tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch's payload is resampled. A version is published again, in another turn."""

    def lose() -> None:
        raise ValueLost("the node that held it is gone")

    def fetch(self: Learner, *payloads: Any) -> None:
        gpu.work(self, "fetch")
        SimulatedLearner.fetch(self, *payloads)

    monkeypatch.setattr(Learner, "fetch", fetch)
    gpu.befalls[fails] = [nothing] * 5 + [lose]
    assert simulated(tmp_path).go() == DONE
    assert not gpu.faults and not gpu.befalls[fails], "it was lost"
    again = gpu.lines.count("publish learner") - STEPS - 1
    assert again == (fails == "load rollout")
    if fails == "load rollout":
        assert learned(tmp_path) == apart
    else:
        assert_each_once(tmp_path)


def test_a_turn_that_raises_wakes_the_engines_unless_the_learner_is_dead() -> None:
    class Sleeper:
        asleep = True

        async def sleep(self) -> None:
            self.asleep = True

        async def wake(self) -> None:
            self.asleep = False

    async def story() -> None:
        learner = Sleeper()
        turns = Colocated(learner, [])
        with pytest.raises(OSError, match="disk"):
            async with turns.learner():
                assert not turns.leasing and not learner.asleep
                raise OSError("no space left on the disk")
        assert turns.leasing and learner.asleep
        with turns.unleased():
            async with turns.learner():
                pass
            assert not turns.leasing
        with pytest.raises(RoleFailed):
            async with turns.learner():
                raise RoleFailed("learner died")
        waiting = asyncio.ensure_future(turns.engine().__aenter__())
        await asyncio.sleep(0)
        assert not turns.leasing and not waiting.done(), "what is left of it may hold memory"
        async with turns.learner():
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting

    asyncio.run(story())
