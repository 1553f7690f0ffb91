"""A disk that is full before a run begins: exit 2 in one line that says which and the remedy, and nothing is left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from configs.hardware import resolve_dtypes
from configs.load import dump_recipe, load_recipe
from orchestrator import cli
from orchestrator.preflight import capacity, cluster
from tests.cli.test_commands import _recipe
from tests.small_disk import as_long_as_may_be, mounted, no_longer_than


@pytest.fixture(autouse=True)
def room_again() -> Iterator[None]:
    yield
    as_long_as_may_be()


def refused(monkeypatch: Any, capsys: Any, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["logratio", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    as_long_as_may_be()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error.startswith("logratio: "), error
    return error


@pytest.fixture
def recipe(models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(_recipe(models, prompts, tmp_path / "runs")))
    return file


@pytest.fixture
def full_once_ray_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a cluster, which writes files of its own."""

    @contextlib.contextmanager
    def driver(recipe: Any) -> Iterator[None]:
        no_longer_than(10)
        yield
        raise AssertionError("a run was about to begin")

    address = SimpleNamespace(gcs_address="127.0.0.1:1")
    monkeypatch.setattr(cluster, "driver", driver)
    monkeypatch.setattr(cluster, "_ray", lambda: SimpleNamespace(get_runtime_context=lambda: address))
    monkeypatch.setattr(capacity, "compared_with", lambda *_: [])


def test_no_room_for_what_leads_commands_to_a_run(
    recipe: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, full_once_ray_is_up: None
) -> None:
    error = refused(monkeypatch, capsys, "run", str(recipe))
    assert f"run.root: the disk is full at {tmp_path / 'runs' / 'live'} (mounted at " in error
    assert error.endswith("; make room, or set run.root to a folder on another disk\n")
    assert not (tmp_path / "runs" / "live").exists()


def test_no_room_for_it_when_a_run_is_resumed(
    recipe: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, full_once_ray_is_up: None
) -> None:
    directory = tmp_path / "runs" / "live"
    (directory / "checkpoints" / "step_4").mkdir(parents=True)
    (directory / "checkpoints" / "step_4" / "MANIFEST.json").write_text("{}")
    (directory / "recipe.yaml").write_text(dump_recipe(resolve_dtypes(load_recipe(recipe), cpu_has_bf16=False)))
    error = refused(monkeypatch, capsys, "resume", str(directory))
    assert "the last whole checkpoint is step_4; make room, then: logratio resume live" in error
    assert {file.name for file in directory.iterdir()} == {"checkpoints", "recipe.yaml", "lock"}


def test_no_room_for_the_lock_of_a_run(recipe: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    no_longer_than(0)
    assert "run.root: the disk is full at " in refused(monkeypatch, capsys, "run", str(recipe))
    assert not (tmp_path / "runs" / "live").exists()


def test_a_real_disk_without_room(recipe: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    with mounted(tmp_path / "disk", 64) as disk:
        (disk / "filler").write_bytes(bytes(64 * 2**10))
        error = refused(monkeypatch, capsys, "run", str(recipe), f"run.root={disk}")
        assert f"(mounted at {disk}, 0.0 MiB free)" in error and not (disk / "live").exists()


def test_a_stop_without_room_for_the_recipe(recipe: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """It is stopped before it began: nothing is lost, and nobody is told to resume it."""
    from orchestrator.surface import carry_out

    def stopped(*_: Any) -> None:
        no_longer_than(10)
        raise carry_out.StoppedEarly

    monkeypatch.setattr(carry_out, "_run_on_cluster", stopped)
    monkeypatch.setattr(carry_out, "ended", lambda code: code)  # it would end this process
    monkeypatch.setattr(sys, "argv", ["logratio", "run", str(recipe)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    as_long_as_may_be()
    said = capsys.readouterr()
    assert ended.value.code == 3 and "resume" not in said.out
    assert said.err.startswith("logratio: recipe.yaml could not be written: ") and said.err.count("\n") == 1
