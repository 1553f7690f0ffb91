"""Writes the trained student as a model directory, which loads wherever the original does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from actors.models.model_files import config_of, tensor_files


def write_model(model: Any, tensors: dict[str, Tensor], others: Iterable[str], source: Path, directory: Path) -> None:
    """Write a model directory. `tensors` are named as in the source's files; its untrained tensors `others` are copied.
    If the student is part of a multimodal model, that model's configuration is copied too."""
    from transformers import AutoTokenizer

    kept = _read(source, others)
    model.save_pretrained(directory, state_dict=tensors | kept, save_original_format=False)
    AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False).save_pretrained(directory)
    config = config_of(source)
    if config.get("model_type") != model.config.model_type:
        whole = _in_dtype(config, str(model.dtype).removeprefix("torch."))
        (directory / "config.json").write_text(json.dumps(whole, indent=2) + "\n")
        for file in source.glob("*processor_config.json"):
            shutil.copyfile(file, directory / file.name)


def name_ends(directory: Path, ends: Sequence[int]) -> None:
    """Set the end tokens of the model in a directory; no change without any."""
    for name in ("config.json", "generation_config.json") if ends else ():
        file = directory / name
        config = json.loads(file.read_text()) if file.exists() else {}
        parts = {"text_config": config["text_config"] | {"eos_token_id": [*ends]}} if "text_config" in config else {}
        file.write_text(json.dumps(config | parts | {"eos_token_id": [*ends]}, indent=2) + "\n")


def _read(source: Path, names: Iterable[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    files = tensor_files(source)
    tensors: dict[str, Tensor] = {}
    for name in names:
        with safe_open(files[name], framework="pt") as file:
            tensors[name] = file.get_tensor(name)
    return tensors


def _in_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration with the weights' dtype, in nested parts too."""
    parts = {key: _in_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    return parts | {key: dtype for key in ("dtype", "torch_dtype") if key in parts}
