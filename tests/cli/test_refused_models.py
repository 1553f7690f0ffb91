"""Models that a role cannot compute with by their architecture: exit 2 before any actor, in one line that names the
model, the number and the remedy."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli
from orchestrator.preflight import cluster
from tests import probed
from tests.engines.shared import merged

WHO = {"student": "learner", "teacher": "scorer.teacher"}  # which role looks at which model


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What transformers says, which is on the terminal beside our line."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield records
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens see those behind them: neither packed nor padded rows give a sequence's own logits."""
    return probed.write(tmp_path_factory.mktemp("refused") / "bert", "bert")


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed it leaks, so it is padded; in bf16 it raises on a CPU."""
    return probed.write(tmp_path_factory.mktemp("refused") / "mamba2", "mamba2")


@pytest.fixture
def recipe(models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """Of which nothing starts."""
    small = {"cpus": 0.1, "threads": 1}
    return {
        "run": {"name": "refused", "root": str(tmp_path), "steps": 1},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models["teacher"])}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 2},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher", "support": "full"},
        "learner": {"dtype": "float32", "optimizer": {"lr": 0.1}, "resources": small},
        "rollout": {"max_context_tokens": 64, "resources": small},
        "scorer": {"teacher": {"dtype": "float32", "max_context_tokens": 64, "resources": small}},
        "reward": {"resources": small},
    }


def written(tree: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def named(recipe: dict[str, Any], model: str, path: Path) -> dict[str, Any]:
    return merged(recipe, {"models": {model: {"path": str(path)}}})


@pytest.mark.parametrize("model", WHO)
def test_an_architecture_that_is_refused_is_exit_2_before_any_actor(
    recipe: dict[str, Any], bert: Path, said: list[str], monkeypatch: Any, capsys: Any, tmp_path: Path, model: str
) -> None:
    def no_cluster(*_: Any) -> None:
        raise AssertionError("a cluster was about to start")

    monkeypatch.setattr(cluster, "start_local", no_cluster)
    file = written(named(recipe, model, bert), tmp_path)
    for command in ("check", "run"):
        monkeypatch.setattr(sys, "argv", ["logratio", command, str(file)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1, error
        assert error.startswith(f"logratio: {WHO[model]}: models.{model}.path ({bert}): padded sequences are 0."), error
        assert re.search(r"0\.\d+ nats off the same ones alone, and packed ones 0\.\d+ nats; choose a model of", error)
    assert not (tmp_path / "refused").exists() and not said


@pytest.mark.parametrize("model", WHO)
def test_check_refuses_a_model_without_kernels_in_its_dtype(
    recipe: dict[str, Any], mamba: Path, monkeypatch: Any, capsys: Any, tmp_path: Path, model: str
) -> None:
    role = {"learner": {"dtype": "bfloat16"}} if model == "student" else {"scorer": {"teacher": {"dtype": "bfloat16"}}}
    file = written(merged(named(recipe, model, mamba), role), tmp_path)
    monkeypatch.setattr(sys, "argv", ["logratio", "check", str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1, error
    assert f"{WHO[model]}: models.{model}.path ({mamba}): it cannot be run here in torch.bfloat16" in error
    assert error.rstrip().endswith("; set another dtype or attention")
