"""Writes that a full disk cuts in the middle: half a line of metrics, half a checkpoint, half a traceback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run import DONE, FAILED
from orchestrator.surface.ending import end, fail
from orchestrator.surface.outcome import Outcome
from tests.small_disk import as_long_as_may_be, give_room, mounted, no_longer_than
from tests.unit.simulation import Simulation, assert_each_once, learned, recipe
from tests.unit.surface.test_full_disk import SETTINGS, Tokenizer

BARE: dict[str, Any] = {**SETTINGS, "record": {"every": 9}}  # no samples: metrics are the longest file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    assert Simulation(recipe(root, **SETTINGS)).go() == DONE
    return root


@pytest.fixture(autouse=True)
def room_again() -> Iterator[None]:
    yield
    as_long_as_may_be()


def carried_out(simulation: Simulation, make_room: Callable[[], None] = as_long_as_may_be) -> Outcome:
    """As `carry_out` ends a run; there is room again before its report is written."""

    async def story() -> Outcome:
        said = None
        try:
            code = await simulation.run.execute()
        except Exception as failure:
            code, said = await fail(simulation.run, failure)
        make_room()
        return await end(simulation.run, code, said, Tokenizer())

    return asyncio.run(story())


def assert_ended_well(simulation: Simulation, outcome: Outcome) -> None:
    """Whatever its code: summary and report are there, nothing half-written has a name, and a failure is a line."""
    directory = simulation.directory
    assert json.loads((directory / "summary.json").read_text())["exit"] == outcome.code
    assert (directory / "report.html").exists() and not outcome.unwritten
    assert not list(directory.rglob("*.partial"))
    if outcome.code == FAILED:
        assert outcome.error and outcome.error.startswith("the run failed: the disk is full at ")
        assert len(outcome.error.split("\n  traceback: ")[0].splitlines()) == 1


def assert_resumes(root: Path, whole: Path, settings: dict[str, Any]) -> None:
    assert Simulation(recipe(root, **settings)).go() == DONE
    assert learned(root) == learned(whole)


def test_a_line_of_metrics_that_a_full_disk_cuts_is_taken_back_by_a_resume(whole: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "sim" / "metrics.jsonl"

    def fill(run: Any, line: Any) -> None:
        if line["step"] == 2:
            no_longer_than(metrics.stat().st_size + 500)

    simulation = Simulation(recipe(tmp_path, **BARE), on_step=fill, heldout=[])
    outcome = carried_out(simulation)
    *lines, torn = metrics.read_text().splitlines(keepends=True)
    assert outcome.code == FAILED and len(lines) == 2 and len(torn) == 500 and not torn.endswith("\n")
    assert "the last whole checkpoint is step_2" in str(outcome.error)
    assert_ended_well(simulation, outcome)
    assert_resumes(tmp_path, whole, BARE)
    assert (tmp_path / "sim" / "metrics.jsonl.lost").read_text() == torn


@pytest.mark.parametrize(("step", "code"), [(2, DONE), (3, FAILED)])
def test_a_checkpoint_that_a_full_disk_cuts_leaves_the_one_before(
    whole: Path, tmp_path: Path, step: int, code: int
) -> None:
    """On the way it is a notice, at the end of the run its failure; the one before stays."""
    simulation = Simulation(recipe(tmp_path, **SETTINGS))

    def fill(phase: str) -> None:
        if phase == f"saving step {step}":
            no_longer_than(700)  # the state has twice as many bytes
        elif phase == "training":
            as_long_as_may_be()

    simulation.phase = fill  # type: ignore[method-assign]
    outcome = carried_out(simulation)
    assert outcome.code == code
    said = [notice for notice in simulation.notices if "was not saved, the last checkpoint stays" in notice]
    assert len(said) == (code == DONE)
    kept = [folder.name for folder in (tmp_path / "sim" / "checkpoints").iterdir()]
    assert kept == [f"step_{5 - step}"]
    assert_ended_well(simulation, outcome)
    if code == FAILED:
        assert_resumes(tmp_path, whole, SETTINGS)
    assert_each_once(tmp_path, 3)


def test_a_traceback_that_a_full_disk_cuts_is_said_to_be_missing(whole: Path, tmp_path: Path) -> None:
    simulation = Simulation(recipe(tmp_path, **BARE), on_step=lambda run, line: no_longer_than(300), heldout=[])
    outcome = carried_out(simulation)
    log = tmp_path / "sim" / "logs" / "driver.log"
    assert outcome.code == FAILED and len(log.read_text()) == 300
    assert str(outcome.error).endswith(f"; its traceback could not be written to {log} (File too large)")
    assert_ended_well(simulation, outcome)
    assert_resumes(tmp_path, whole, BARE)


@pytest.mark.parametrize("kib", [8, 20, 32, 44, 52, 72])
def test_a_run_on_a_disk_that_is_too_small_ends_well_and_is_resumed(whole: Path, tmp_path: Path, kib: int) -> None:
    """A real one: it is full in the middle of samples, checkpoints or metrics, as its size has it."""
    with mounted(tmp_path / "disk", kib) as disk:
        simulation = Simulation(recipe(disk, **SETTINGS))
        outcome = carried_out(simulation, lambda: give_room(disk))
        assert outcome.code == FAILED
        assert f"(mounted at {disk}, 0.0 MiB free)" in str(outcome.error)
        assert_ended_well(simulation, outcome)
        assert_resumes(disk, whole, SETTINGS)
        assert_each_once(disk, 3)
