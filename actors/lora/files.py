"""Adapters as files that peft and vLLM read, and the fingerprint of the base that they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from torch import Tensor

from actors.models.fingerprint import fingerprint
from configs.roles.lora import Lora

BASE_FILE = "base.json"  # in a checkpoint


def write_adapter(tensors: Mapping[str, Tensor], targets: Sequence[str], lora: Lora, base: str, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json to a new folder."""
    from safetensors.torch import save_file

    folder.mkdir(mode=0o700, parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted(set(targets)),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def base_fingerprint(directory: Path) -> str:
    """Hash of all weight files of a directory, by name and bytes. About a second for 2 GiB."""
    hashes = {file.name: _hash(file) for file in sorted(directory.glob("*.safetensors"))}
    return fingerprint(json.dumps(hashes).encode())


def record_base(directory: Path, lora: Lora, known: str, folder: Path) -> None:
    """Write what a checkpoint's adapters are of, in place of a copy of the base: its directory and fingerprint."""
    (folder / BASE_FILE).write_text(json.dumps(_identity(directory, lora, known), indent=2) + "\n")


def check_base(directory: Path, lora: Lora, known: str, folder: Path) -> None:
    """Raise RuntimeError if a checkpoint's adapters are of another base, or of other layers or ranks."""
    if not (folder / BASE_FILE).exists():
        raise RuntimeError(f"{folder} holds no adapters ({BASE_FILE} is missing); resume it without learner.lora")
    saved, own = json.loads((folder / BASE_FILE).read_text()), _identity(directory, lora, known)
    if saved["fingerprint"] != known:
        raise RuntimeError(
            f"{folder}: its adapters are of the weights of {saved['directory']} as they were; those of {directory} "
            "differ; restore them, or start a new run"
        )
    if saved["lora"] != own["lora"]:
        raise RuntimeError(f"{folder}: its adapters are {saved['lora']}, learner.lora asks for {own['lora']}")


def recorded_lora(folder: Path) -> Lora | None:
    """The adapters that a checkpoint holds; None if it holds all weights. Raises OSError or ValueError for a file that
    cannot be read."""
    file = folder / BASE_FILE
    return Lora.model_validate(json.loads(file.read_text())["lora"]) if file.exists() else None


def _identity(directory: Path, lora: Lora, known: str) -> dict[str, Any]:
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    of = {"rank": lora.rank, "alpha": lora.alpha, "targets": targets}
    return {"directory": str(directory), "fingerprint": known, "lora": of}


def _hash(file: Path) -> str:
    with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
        return fingerprint(data)
