"""Stop, Ctrl-C and SIGTERM in every phase of a simulated run, in simulated time."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.learner import SimulatedLearner
from actors.simulated.rollout import SimulatedRollout
from orchestrator.between_steps.measuring import Measurements
from orchestrator.run import DONE, STOPPED, Run
from orchestrator.stopping import STOP_COMMAND, Ask, Signals
from tests.unit.own_time import in_own_time
from tests.unit.simulation import STEPS, Simulation, assert_each_once, learned, metrics, recipe

LONG = 1000.0  # seconds that what is under way would take
SECONDS = 5.0  # a stop may take, where no step is under way


# --- what a signal asks for ---


@pytest.mark.parametrize(
    ("heard", "asked"),
    [
        ([signal.SIGINT], Ask.GENTLY),
        ([signal.SIGTERM], Ask.IN_TIME),
        ([STOP_COMMAND], Ask.GENTLY),
        ([STOP_COMMAND, STOP_COMMAND], Ask.GENTLY),
        ([STOP_COMMAND, signal.SIGINT], Ask.GENTLY),
        ([STOP_COMMAND, signal.SIGTERM], Ask.IN_TIME),
        ([signal.SIGINT, signal.SIGINT], Ask.AT_ONCE),
        ([signal.SIGINT, signal.SIGTERM], Ask.AT_ONCE),
        ([signal.SIGTERM, signal.SIGINT], Ask.AT_ONCE),
        ([signal.SIGTERM, signal.SIGTERM], Ask.IN_TIME),
    ],
)
def test_the_request_of_a_signal_depends_on_earlier_ones(heard: list[int], asked: Ask) -> None:
    signals = Signals()
    assert [signals.heard(number) for number in heard][-1] is asked


# --- in every phase ---


class Stopped:
    """A run that is asked to stop at a moment; it measures the simulated seconds until it ends."""

    def __init__(self, root: Path, ask: Ask, **changes: Any) -> None:
        self.simulation = Simulation(recipe(root, **({"checkpoint": {"every": 0}} | changes)), self._on_step)
        self.ask, self.at = ask, 0.0
        self.on_step: Callable[[Mapping[str, Any]], None] = lambda line: None
        self.phases: list[str] = []
        self.simulation.phase = self.phases.append  # type: ignore[method-assign]

    def now(self) -> None:
        if not self.at:
            self.at = asyncio.get_running_loop().time()
            self.simulation.run.stop(self.ask)

    def soon(self, seconds: float = 1.0) -> None:
        asyncio.get_running_loop().call_later(seconds, self.now)

    def went_on(self) -> float:
        async def story() -> float:
            assert await self.simulation.run.execute() == STOPPED
            return asyncio.get_running_loop().time() - self.at

        return in_own_time(story())

    def _on_step(self, run: Run, line: Mapping[str, Any]) -> None:
        self.on_step(line)


def slow(monkeypatch: pytest.MonkeyPatch, cls: type, method: str, begun: Callable[[], None], call: int = 1) -> None:
    """Make the `call`-th call of a method take long; `begun` is called when it begins."""
    whole, calls = getattr(cls, method), []

    async def waits() -> None:
        calls.append(method)
        if len(calls) == call:
            begun()
            await asyncio.sleep(LONG)

    async def answered(self: Any, *arguments: Any) -> Any:
        await waits()
        found = whole(self, *arguments)
        return await found if asyncio.iscoroutine(found) else found

    async def yielded(self: Any, *arguments: Any) -> AsyncIterator[Any]:
        await waits()
        async for value in whole(self, *arguments):
            yield value

    monkeypatch.setattr(cls, method, yielded if method == "write" else answered)


def assert_resumes(root: Path, expected: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """The resumed run equals an uninterrupted one."""
    monkeypatch.undo()
    assert Simulation(recipe(root, **({"checkpoint": {"every": 0}} | changes))).go() == DONE
    assert learned(root) == learned(expected)
    assert_each_once(root)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    assert Simulation(recipe(root)).go() == DONE
    return root


ASKS = [Ask.GENTLY, Ask.IN_TIME, Ask.AT_ONCE]


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(
    ("cls", "method"),
    [
        pytest.param(SimulatedRollout, "start", id="engines start"),
        pytest.param(SimulatedLearner, "start", id="the learner starts"),
        pytest.param(SimulatedRollout, "write", id="the evaluation before samples"),
        pytest.param(SimulatedLearner, "evaluate", id="the evaluation before is read"),
    ],
)
def test_a_stop_before_the_first_step_takes_seconds_and_a_resume_starts_over(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type, method: str, ask: Ask
) -> None:
    stopped = Stopped(tmp_path, ask)
    slow(monkeypatch, cls, method, stopped.soon)
    assert stopped.went_on() < SECONDS
    assert (tmp_path / "sim" / "recipe.yaml").exists() and (tmp_path / "sim" / "summary.json").exists()
    assert not list((tmp_path / "sim").glob("checkpoints/*"))
    assert_resumes(tmp_path, whole, monkeypatch)


@pytest.mark.parametrize("ask", ASKS)
def test_a_stop_while_waiting_for_a_batch_takes_seconds_and_saves(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    """Asked at once, it saves no new checkpoint."""
    stopped = Stopped(tmp_path, ask, checkpoint={"every": 2, "keep": 9}, rollout={"members": 1})
    write = SimulatedRollout.write

    async def waits(self: SimulatedRollout, request: Any, *arguments: Any) -> AsyncIterator[Any]:
        if stopped.simulation.run.progress.step == 3:
            stopped.soon()
            await asyncio.sleep(LONG)
        async for row in write(self, request, *arguments):
            yield row

    monkeypatch.setattr(SimulatedRollout, "write", waits)
    assert stopped.went_on() < SECONDS
    kept = sorted(folder.name for folder in (tmp_path / "sim" / "checkpoints").iterdir())
    assert kept == (["step_2"] if ask is Ask.AT_ONCE else ["step_2", "step_3"])
    assert_resumes(tmp_path, whole, monkeypatch)


@pytest.mark.parametrize(
    ("ask", "grace", "ended", "steps"),
    [
        (Ask.GENTLY, 20.0, LONG, 4),
        (Ask.IN_TIME, None, 20.0, 3),
        (Ask.IN_TIME, 30.0, 30.0, 3),
        (Ask.IN_TIME, 2 * LONG, LONG, 4),
        (Ask.AT_ONCE, 20.0, 0.0, 3),
    ],
    ids=str,
)
def test_the_step_under_way_ends_or_is_given_up_after_the_grace(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
    grace: float | None,
    ended: float,
    steps: int,
) -> None:
    given = {} if grace is None else {"grace_seconds": grace}
    changes: dict[str, Any] = {"run": given, "checkpoint": {"every": 3, "keep": 9}}
    stopped = Stopped(tmp_path, ask, **changes)
    slow(monkeypatch, SimulatedLearner, "step", stopped.now, call=4)
    assert ended <= stopped.went_on() < ended + SECONDS
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, steps + 1))
    kept = sorted(folder.name for folder in (tmp_path / "sim" / "checkpoints").iterdir() if folder.suffix == "")
    assert kept == ["step_3", "step_4"][: steps - 2]
    assert_resumes(tmp_path, whole, monkeypatch, **changes)


@pytest.mark.parametrize("ask", ASKS)
def test_an_evaluation_between_steps_is_given_up_and_made_by_the_resume(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    changes: dict[str, Any] = {"evaluate": {"every": 2}}
    stopped = Stopped(tmp_path, ask, **changes)
    evaluations = 0
    begin = Measurements.evaluate

    async def evaluate(self: Measurements, when: str) -> Any:
        nonlocal evaluations
        evaluations += 1
        if when == "step 2":
            stopped.soon()
            await asyncio.sleep(LONG)
        return await begin(self, when)

    monkeypatch.setattr(Measurements, "evaluate", evaluate)
    assert stopped.went_on() < SECONDS
    assert_resumes(tmp_path, whole, monkeypatch, **changes)
    found = json.loads((tmp_path / "sim" / "summary.json").read_text())["evaluation"]["steps"]
    assert [line["step"] for line in found] == [2, 4]


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(("cls", "method"), [(SimulatedRollout, "write"), (SimulatedLearner, "export")], ids=str)
def test_a_stop_after_the_last_step_takes_seconds_and_the_resume_finishes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask, cls: type, method: str
) -> None:
    stopped = Stopped(tmp_path, ask)
    stopped.on_step = lambda line: slow(monkeypatch, cls, method, stopped.soon) if line["step"] == STEPS else None
    assert stopped.went_on() < SECONDS
    assert not (tmp_path / "sim" / "model").exists()
    assert [folder.name for folder in (tmp_path / "sim" / "checkpoints").iterdir()] == [f"step_{STEPS}"]
    assert_resumes(tmp_path, whole, monkeypatch)
    assert (tmp_path / "sim" / "model").is_dir() and not (tmp_path / "sim" / "model.partial").exists()


def test_a_second_ctrl_c_ends_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first Ctrl-C lets the step finish, the second ends it."""
    stopped = Stopped(tmp_path, Ask.GENTLY)

    def twice() -> None:
        stopped.now()
        asyncio.get_running_loop().call_later(30.0, stopped.simulation.run.stop, Ask.AT_ONCE)

    slow(monkeypatch, SimulatedLearner, "step", twice, call=2)
    assert 30.0 <= stopped.went_on() < 30.0 + SECONDS


def test_a_learner_that_dies_during_a_stop_is_not_rebuilt(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Stopped(tmp_path, Ask.GENTLY, checkpoint={"every": 2})

    def kill() -> None:
        stopped.now()
        learner = stopped.simulation.run.pools.learner.members[0]
        asyncio.get_running_loop().call_later(
            5.0, lambda: asyncio.ensure_future(stopped.simulation.transport.kill(learner.actors))
        )

    slow(monkeypatch, SimulatedLearner, "step", kill, call=4)
    assert stopped.went_on() < 5.0 + SECONDS
    assert stopped.simulation.run.progress.step == 3
    assert_resumes(tmp_path, whole, monkeypatch, checkpoint={"every": 2})
