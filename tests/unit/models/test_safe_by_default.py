"""A model directory is data: no code in it runs, and weights that are pickles are refused."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.lora.sites import _small
from actors.models.causal_lm import load_model, whole
from actors.models.probing.small_copy import _read
from actors.models.stored import empty_model
from configs.load import RecipeError
from orchestrator.preflight.files import _model_folder, _tokenizer

ROOT = Path(__file__).parents[3]
CODE = "from pathlib import Path\nPath({!r}).write_text('ran')\nclass Own: ...\n"
LOADERS: dict[str, Callable[[Path], Any]] = {
    "weights": lambda folder: whole(AutoModelForCausalLM, folder),
    "shape": empty_model,
    "configuration": _read,
    "adapters": _small,
    "tokenizer": lambda folder: _tokenizer("models.student.path", folder),
}


@pytest.mark.parametrize("kind", ["llama", "own"])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_code_in_a_model_directory_does_not_run(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[Path], Any], kind: str
) -> None:
    """Be the architecture one that transformers knows, or one that only the code knows."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(models["teacher"], tmp_path / "model")
    (folder / "own.py").write_text(CODE.format(str(tmp_path / "ran")))
    classes = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    _extend(folder / "config.json", {"model_type": kind, "auto_map": classes})
    _extend(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}})
    with suppress(ValueError, RecipeError):  # what it refuses to load
        load(folder)
    assert not (tmp_path / "ran").exists()


def _extend(file: Path, keys: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_every_loader_says_that_no_code_may_run() -> None:
    """vLLM's too, which takes half a minute to start."""
    said = [ast.unparse(call) for call in _calls()]
    assert len(said) >= 11
    assert not [call for call in said if "trust_remote_code=False" not in call and "**safe" not in call]


def _calls() -> Iterator[ast.Call]:
    """The product's calls that read a configuration, a model or a tokenizer."""
    for file in (*(ROOT / "actors").rglob("*.py"), *(ROOT / "orchestrator").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in ("from_pretrained", "from_config", "AsyncEngineArgs"):
                    yield node


def test_weights_that_are_pickles_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models["teacher"], tmp_path / "model")
    torch.save(load_model(folder, "float32").state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"needs config\.json and \*\.safetensors; export it as safetensors"):
        _model_folder("models.student.path", str(folder))
    with pytest.raises(OSError, match="safetensors"):
        load_model(folder, "float32")
