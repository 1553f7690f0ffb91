"""A directory of weights that is not whole is noticed: engines may take it without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from actors.models import causal_lm, model_files


@pytest.fixture
def folder(models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(models["teacher"], tmp_path / "copy"))


def test_a_whole_model_directory_lacks_no_file(models: dict[str, Path], folder: Path) -> None:
    assert [name for name, model in models.items() if model_files.incomplete(model)] == []
    causal_lm.load_model(folder, "float32")


def test_a_file_that_was_cut_short_is_said_in_bytes(folder: Path) -> None:
    file = folder / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-10])
    assert model_files.incomplete(folder) == f"model.safetensors has {size - 10} of its {size} bytes"
    file.write_bytes(file.read_bytes()[:100])
    assert model_files.incomplete(folder) == "model.safetensors is no safetensors file"


@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 100, b"\xff" * 100, b"\2" + b"\0" * 7 + b"[]"],
    ids=["empty", "git-lfs", "zeros", "ones", "list"],
)
def test_what_is_no_safetensors_file_is_said(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert model_files.incomplete(folder) == "model.safetensors is no safetensors file"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_json_that_was_cut_short_is_said(folder: Path, name: str) -> None:
    (folder / name).write_text('{"weight_map": {"a": "mo')
    assert model_files.incomplete(folder) == f"{name} is no JSON"


def test_files_that_the_index_lists_must_be_there(folder: Path) -> None:
    listed = {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert model_files.incomplete(folder) == "model-2.safetensors of 2 files are missing"


def test_weights_that_are_missing_are_not_drawn_at_random(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights \['model.layers.1.mlp.down_proj.weight'\]"):
        causal_lm.load_model(folder, "float32")
