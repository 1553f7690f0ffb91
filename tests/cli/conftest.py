"""Shared by tests of commands that refuse their input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli
from orchestrator.preflight import cluster


@pytest.fixture
def recipe(models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """A recipe that would run, as a tree to spoil."""
    return {
        "run": {"name": "bad", "root": str(tmp_path / "runs"), "steps": 1},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models["teacher"])}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher", "support": "full"},
        "learner": {"optimizer": {"lr": 0.1}, "resources": {"cpus": 0.1}},
        "rollout": {"max_context_tokens": 64, "resources": {"cpus": 0.1}},
        "scorer": {"teacher": {"max_context_tokens": 64, "resources": {"cpus": 0.1}}},
    }


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs `logratio run`, or another command, on a tree; returns the line that refused it. No cluster may start."""

    def refuse(tree: dict[str, Any], *overrides: str, command: str = "run") -> str:
        def no_cluster(cpus: int, object_store_mib: int | None) -> None:
            raise AssertionError("a cluster was about to start")

        monkeypatch.setattr(cluster, "start_local", no_cluster)
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(tree))
        code, error = _logratio(monkeypatch, capsys, command, str(file), *overrides)
        assert code == 2, error
        assert error.startswith("logratio: ") and error.count("\n") == 1, error
        return error

    return refuse


def _logratio(monkeypatch: Any, capsys: Any, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["logratio", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err
