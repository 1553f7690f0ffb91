"""A disk that fills up at each write in turn: the run ends in one line that says which disk and what is whole, leaves
its summary and report when there is room again, and a resume goes on."""

from __future__ import annotations

import asyncio
import errno
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from orchestrator.preflight import disk
from orchestrator.run import DONE, FAILED
from orchestrator.surface.ending import end, fail
from orchestrator.surface.outcome import Outcome
from tests.unit.simulation import Simulation, assert_each_once, learned, recipe

SETTINGS: dict[str, Any] = {"run": {"steps": 3}, "checkpoint": {"every": 2}}


class Tokenizer:
    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


class Disk:
    """The `last`-th file opened for writing finds the disk full, and so do later ones until there is `room` again."""

    def __init__(self, folder: Path, last: int | None) -> None:
        self.folder, self.last, self.opened = folder, last, 0
        self.room = False
        self.refused: list[Path] = []

    def wants(self, path: Any) -> None:
        file = Path(str(path))
        if not file.is_relative_to(self.folder):
            return
        self.opened += 1
        if self.last is not None and self.opened > self.last and not self.room:
            self.refused.append(file)
            raise OSError(errno.ENOSPC, "No space left on device", str(file))


def filled(monkeypatch: pytest.MonkeyPatch, full: Disk) -> None:
    opened, sink = io.open, pa.OSFile

    def open_(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if set(mode) & set("wax"):
            full.wants(file)
        return opened(file, mode, *arguments, **named)

    def os_file(path: str, mode: str = "r", *arguments: Any) -> Any:
        if "w" in mode:
            full.wants(path)
        return sink(path, mode, *arguments)

    monkeypatch.setattr(io, "open", open_)
    monkeypatch.setattr(pa, "OSFile", os_file)


def carried_out(simulation: Simulation, full: Disk, room_at_the_end: bool) -> Outcome:
    async def story() -> Outcome:
        said = None
        try:
            code = await simulation.run.execute()
        except Exception as failure:
            code, said = await fail(simulation.run, failure)
        full.room = room_at_the_end
        return await end(simulation.run, code, said, Tokenizer())

    return asyncio.run(story())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("whole")
    assert Simulation(recipe(root, **SETTINGS)).go() == DONE
    yield root


def test_a_full_disk_at_each_write_ends_the_run_in_a_line_and_a_resume_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Disk(tmp_path, None)
    with monkeypatch.context() as patch:
        filled(patch, counted)
        assert carried_out(Simulation(recipe(tmp_path / "counted", **SETTINGS)), counted, True).code == DONE
    met: set[str] = set()
    for write in range(counted.opened):
        root, full = tmp_path / str(write), Disk(tmp_path / str(write), write)
        with monkeypatch.context() as patch:
            filled(patch, full)
            outcome = carried_out(Simulation(recipe(root, **SETTINGS)), full, True)
        met |= {file.name.split(".")[0].rstrip("0123456789") for file in full.refused}
        directory = root / "sim"
        if outcome.code == FAILED:
            assert outcome.error and outcome.error.startswith("the run failed: the disk is full at ")
            assert any(f"{file} (mounted at" in outcome.error for file in full.refused)
            kept = max(
                (folder.name for folder in directory.glob("checkpoints/step_?")), default="no checkpoint is whole"
            )
            assert kept in outcome.error
            assert "its traceback could not be written" in outcome.error
            assert len(outcome.error.splitlines()) == 1
        assert json.loads((directory / "summary.json").read_text())["exit"] == outcome.code
        assert (directory / "report.html").exists() and not outcome.unwritten
        assert not list(directory.glob("*.partial")) and not list(directory.glob("checkpoints/*.partial"))
        if outcome.code == FAILED:
            assert Simulation(recipe(root, **SETTINGS)).go() == DONE
        assert learned(root) == learned(whole)
        assert_each_once(root, 3)
    assert {"recipe", "policy_version", "metrics", "step_", "eval_before", "summary", "MANIFEST", "rank"} <= met


def test_files_that_find_no_room_at_the_end_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Disk(tmp_path, 12)
    with monkeypatch.context() as patch:
        filled(patch, full)
        outcome = carried_out(Simulation(recipe(tmp_path, **SETTINGS)), full, False)
    assert outcome.code == FAILED and outcome.report is None
    summary, report = outcome.unwritten
    assert summary.startswith("summary.json could not be written: [Errno 28]")
    assert report.startswith("report.html could not be written: [Errno 28]")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), True),
        (ExceptionGroup("unhandled", [RuntimeError("I/O error: No space left on device (os error 28)")]), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("out of memory"), False),
    ],
    ids=str,
)
def test_failures_of_a_full_disk_are_recognised(error: Exception, full: bool) -> None:
    assert disk.is_full(error) is full
