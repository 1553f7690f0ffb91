"""A version of adapters: A and B of each adapted tensor, named after the tensor in the student's files.

The names are those that vLLM's adapter loading reads. Who cannot use an adapter as it is merges it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from actors.models.model_files import tensor_files
from actors.models.stored import stored
from actors.models.weights import checked, unpack
from actors.wire.records import BadWeights
from configs.roles.lora import Lora

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

Adapter = Mapping[str, Tensor]  # by wire name


def names(tensor: str) -> tuple[str, str]:
    """Names of A and B of a tensor of the files, or of a module's weight."""
    stem = tensor.removesuffix(".weight")
    return f"{_PREFIX}{stem}{_A}", f"{_PREFIX}{stem}{_B}"


def module_ends(version: Adapter) -> list[str]:
    """Last parts of the names of the adapted layers, ascending."""
    return sorted({name.removesuffix(_A).rsplit(".", 1)[-1] for name in version if name.endswith(_A)})


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A, float32. weight [out, in], a [rank, in], b [out, rank], of any dtypes."""
    return weight.float().addmm(b.float(), a.float(), alpha=scale)


def adapter(headers: Sequence[Any], data: Sequence[Any], directory: Path, rank: int) -> dict[str, Tensor]:
    """A version's adapters, by wire name. Raises BadWeights if they changed on the way, or do not fit the model in
    `directory`. Hashes and reads files: do not call it on an event loop."""
    tensors = unpack(headers, data)
    shapes = stored(directory).tensors
    for name in {n.removesuffix(_A).removesuffix(_B) for n in tensors}:
        weight = name.removeprefix(_PREFIX) + ".weight"
        a, b = (tensors.get(part) for part in names(weight))
        found = None if a is None or b is None else (tuple(a.shape), tuple(b.shape))
        shape = shapes.get(weight)
        if shape is None or found != ((rank, shape[1]), (shape[0], rank)):
            raise BadWeights(f"adapter {name} {found}: {directory} has {shape} at rank {rank}; same model and rank?")
    return tensors


def merged_tensors(version: Adapter, directory: Path, lora: Lora) -> dict[str, Tensor]:
    """The adapted tensors with their adapters merged, float32, by their names in the files of `directory`."""
    weights = sorted({n.removeprefix(_PREFIX).removesuffix(_A) + ".weight" for n in version if n.endswith(_A)})
    base = read_tensors(directory, weights)
    parts = {w: names(w) for w in weights}
    return {w: merge(base[w], version[a], version[b], lora.scale) for w, (a, b) in parts.items()}


def whole(version: Adapter, directory: Path, lora: Lora) -> dict[str, Tensor]:
    """All tensors of the model in `directory`, the adapted ones merged."""
    merged = merged_tensors(version, directory, lora)
    others = [name for name in stored(directory).tensors if name not in merged]
    return read_tensors(directory, others) | merged


def moved_tensors(headers: Sequence[Any], data: Sequence[Any], directory: Path, lora: Lora | None) -> dict[str, Tensor]:
    """The tensors in which a version differs from `directory`, by their names there: all, or those that `lora` adapts.
    A version of an average has them merged already. Raises BadWeights."""
    if lora is None:
        return checked(headers, data, directory)
    if any(name.endswith(_A) for header in headers for name in header.names):
        return merged_tensors(adapter(headers, data, directory, lora.rank), directory, lora)
    tensors, shapes = unpack(headers, data), stored(directory).tensors
    for name, tensor in tensors.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise BadWeights(f"weight {name} {tuple(tensor.shape)}: {directory} has {shapes.get(name)}; same model?")
    return tensors


def read_tensors(directory: Path, wanted: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of a directory's files."""
    from safetensors import safe_open

    files, found = tensor_files(directory), {}
    for file in sorted({files[name] for name in wanted}):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in wanted if files[name] == file}
    return found
