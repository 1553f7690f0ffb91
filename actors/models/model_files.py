"""Facts about a model directory, read without loading a weight or importing an engine."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

_INDEX = "model.safetensors.index.json"
_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}


# dtypes that are valid in a file but not read here
_NARROW = dict.fromkeys(("U16", "U32", "U64", "I16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"), 0)


def tensor_shapes(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, safetensors dtype) of every tensor, from the file headers alone."""
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in _weight_files(directory):
        entries, _ = _header(file)
        tensors |= {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()}
    return tensors


def tensor_files(directory: Path) -> dict[str, Path]:
    """Name of every tensor -> the file that holds it."""
    return {name: file for file in _weight_files(directory) for name in _header(file)[0]}


def config_of(directory: Path) -> dict[str, Any]:
    """config.json, parsed."""
    return _read_json(Path(directory) / "config.json")


def incomplete(directory: Path) -> str | None:
    """What a directory lacks, as after an interrupted copy, or None. Engines may load such a directory silently."""
    for name in ("config.json", "generation_config.json", _INDEX):
        try:
            if not isinstance(_read_json(directory / name), dict):
                return f"{name} is no JSON object"
        except (ValueError, RecursionError):
            return f"{name} is no JSON"
    for file in _weight_files(directory):
        try:
            _, size = _header(file)
        except (ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError):
            return f"{file.name} is no safetensors file"
        if file.stat().st_size != size:
            return f"{file.name} has {file.stat().st_size} of its {size} bytes"
    listed = _read_json(directory / _INDEX).get("weight_map", {})
    if not isinstance(listed, dict) or not all(isinstance(file, str) and "\0" not in file for file in listed.values()):
        return f"{_INDEX} has no weight_map from tensors to files"
    if missing := sorted({file for file in listed.values() if not (directory / file).exists()}):
        return f"{', '.join(missing[:3])} of {len(set(listed.values()))} files are missing"
    return None


def weight_bytes(directory: Path, dtype: str) -> int:
    """Bytes of one whole weight version in `dtype` (bfloat16 or float32)."""
    size = {"bfloat16": 2, "float32": 4}[dtype]
    return sum(prod(shape) * size for shape, _ in tensor_shapes(directory).values())


def end_token_ids(directory: Path) -> tuple[int, ...]:
    """The model's end tokens, ascending: those of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        ids = _read_json(directory / name).get("eos_token_id")
        if ids is not None:
            return tuple(sorted({ids} if isinstance(ids, int) else set(ids)))
    return ()


def context_length(directory: Path) -> int | None:
    """Positions that the model was built for, tokens; None if its configuration does not say."""
    config = _read_json(directory / "config.json")
    return config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")


def logit_width(directory: Path) -> int:
    """Columns of the model's logits, padding included. Raises KeyError if the configuration does not say."""
    config = _read_json(directory / "config.json")
    return int(config["vocab_size"] if "vocab_size" in config else config["text_config"]["vocab_size"])


def parameters(directory: Path) -> int:
    """Numbers in all tensors; a head tied to the embeddings counts once."""
    return sum(prod(shape) for shape, _ in tensor_shapes(directory).values())


def hidden_width(directory: Path) -> int:
    """Width of the last hidden states, which is that of the embeddings: [vocabulary, width]."""
    rows = logit_width(directory)
    shapes = [shape for shape, _ in tensor_shapes(directory).values()]
    return next(shape[1] for shape in shapes if len(shape) == 2 and shape[0] == rows)


def key_values_per_token(directory: Path) -> int | None:
    """Numbers that a token adds to the KV cache: 2 x layers x key-value heads x head width. None if the configuration
    does not say, or if some layer does not keep all tokens."""
    config = _read_json(directory / "config.json")
    config = config.get("text_config", config)
    windowed = config.get("sliding_window") and config.get("use_sliding_window", True)
    if windowed or config.get("kv_lora_rank") or set(config.get("layer_types") or ()) - {"full_attention"}:
        return None
    if not {"num_hidden_layers", "num_attention_heads", "hidden_size"} <= config.keys():
        return None
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return 2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * width


def layer_numbers(directory: Path) -> tuple[int, int] | None:
    """Layers, and numbers of one token that a decoder layer keeps for its backward pass, without attention scores;
    None if the configuration does not say.

    Of width h, query width q, key width k and MLP width m that is 8h + 5 (q + k) + 4m, in the model's dtype: two norms
    with a float32 copy before and after scaling, projections with their norms and rotations, a gated MLP. Counted on
    transformers' Qwen3 layers; of other layers it is an estimate."""
    config = _read_json(directory / "config.json")
    config = config.get("text_config", config)
    wanted = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    if not all(isinstance(config.get(name), int) for name in wanted):
        return None
    width, heads = config["hidden_size"], config["num_attention_heads"]
    per_head = config.get("head_dim") or width // heads
    keys = (config.get("num_key_value_heads") or heads) * per_head
    experts = (config.get("num_experts_per_tok") or 1) * (config.get("moe_intermediate_size") or 0)
    mlp = max(config["intermediate_size"], experts)
    return config["num_hidden_layers"], 8 * width + 5 * (heads * per_head + keys) + 4 * mlp


def _weight_files(directory: Path) -> list[Path]:
    return sorted(Path(directory).glob("*.safetensors"))


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Entries of a safetensors file by tensor, and the bytes that the file must have. Raises ValueError, KeyError or
    TypeError if it is no safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:  # text, e.g. a git-lfs pointer
            raise ValueError(f"{file} is no safetensors file")
        entries = json.loads(stream.read(length))
    entries.pop("__metadata__", None)
    for entry in entries.values():
        counts = [*entry["shape"], *entry["data_offsets"]]
        if not all(type(n) is int and 0 <= n < 2**63 for n in counts) or entry["dtype"] not in _BYTES | _NARROW:
            raise ValueError(f"{file} is no safetensors file")
    return entries, 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
