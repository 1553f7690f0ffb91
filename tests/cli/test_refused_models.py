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
from safetensors.torch import load_file, save_file

from actors.models import stored
from orchestrator import cli
from orchestrator.preflight import cluster
from tests import architectures, probed
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


def checked(tree: dict[str, Any], tmp_path: Path, monkeypatch: Any, capsys: Any) -> tuple[int, str]:
    """Exit code and errors of `check`."""
    monkeypatch.setattr(sys, "argv", ["logratio", "check", str(written(tree, tmp_path))])
    capsys.readouterr()
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


def test_check_refuses_an_attention_of_a_scorer_that_leaves_something_out(
    recipe: dict[str, Any], monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    """Gemma 2 soft-caps what a token attends to, which `sdpa` does not."""
    gemma = probed.write(tmp_path / "gemma2", "gemma2")
    tree = named(recipe, "teacher", gemma)
    told = merged(tree, {"scorer": {"teacher": {"attention": "sdpa"}}})
    code, error = checked(told, tmp_path, monkeypatch, capsys)
    assert code == 2 and error.count("\n") == 1, error
    assert f"scorer.teacher: models.teacher.path ({gemma}): this attention is " in error
    assert error.rstrip().endswith("set attention: auto or eager")
    for attention in ("auto", "eager"):
        told = merged(tree, {"scorer": {"teacher": {"attention": attention}}})
        assert checked(told, tmp_path, monkeypatch, capsys) == (0, "")


def test_check_sees_whether_a_students_files_hold_its_model_and_can_be_written_again(
    recipe: dict[str, Any], monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    """transformers fuses the experts of a layer."""
    moe = architectures.build("qwen3_moe", tmp_path / "moe")
    tree = named(recipe, "student", moe)
    assert checked(tree, tmp_path, monkeypatch, capsys) == (0, "")

    with monkeypatch.context() as patch:
        patch.setattr(stored._Rules, "_splitting", lambda *_: None)  # a conversion that goes one way only
        code, error = checked(tree, tmp_path, monkeypatch, capsys)
    assert code == 2 and error.count("\n") == 1, error
    assert f"models.student.path: {moe}: model.layers.0.mlp.experts.0." in error
    assert "cannot be made of model.layers.0.mlp.experts." in error
    assert error.rstrip().endswith("load the model with transformers and save it with save_pretrained")

    tensors = load_file(moe / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, moe / "model.safetensors", {"format": "pt"})
    code, error = checked(tree, tmp_path, monkeypatch, capsys)
    assert code == 2 and error.count("\n") == 1, error
    assert f"models.student.path: {moe}: model.layers.1.mlp.experts.gate_up_proj cannot be made of the 7" in error
    assert error.rstrip().endswith("copy or export the model again")
