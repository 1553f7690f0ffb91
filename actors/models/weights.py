"""A weight version on the wire: bf16 or f32 buckets, each with a header of names, shapes and a hash."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from actors.models.causal_lm import DTYPES, to_bytes, viewed
from actors.models.fingerprint import fingerprint
from actors.models.stored import stored
from actors.wire.records import BadWeights, BucketHeader

BUCKET_BYTES = 64 * 2**20


def buckets(
    tensors: Iterable[tuple[str, Tensor]], dtype: str, precise: Collection[str] = ()
) -> Iterator[tuple[np.ndarray, BucketHeader]]:
    """Named tensors -> (uint8 array, header), up to BUCKET_BYTES each; a larger tensor has a bucket of its own.
    `precise` tensors travel in float32; all tensors of a bucket have one dtype."""
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    parts: list[np.ndarray] = []
    current = dtype
    for name, tensor in tensors:
        own = "float32" if name in precise else dtype
        part = to_bytes(tensor.to(DTYPES[own]))
        if parts and (own != current or sum(p.nbytes for p in parts) + part.nbytes > BUCKET_BYTES):
            yield _bucket(names, shapes, parts, current)
            names, shapes, parts = [], [], []
        current = own
        names.append(name)
        shapes.append(tuple(tensor.shape))
        parts.append(part)
    if parts:
        yield _bucket(names, shapes, parts, current)


def unpack(headers: Sequence[BucketHeader], data: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Buckets -> tensors by name, which must only be read: they are views of the buckets. Raises BadWeights if a bucket
    is missing, truncated or changed."""
    if len(headers) != len(data):
        raise BadWeights(f"{len(data)} weight buckets arrived, {len(headers)} were announced; pull the version again")
    tensors: dict[str, Tensor] = {}
    for header, bucket in zip(headers, data, strict=True):
        if bucket.nbytes != header.nbytes or fingerprint(bucket) != header.fingerprint:
            raise BadWeights(
                f"the bucket that begins with {header.names[0]} changed on the way; pull the version again"
            )
        flat = viewed(bucket, header.dtype)
        offset = 0
        for name, shape in zip(header.names, header.shapes, strict=True):
            size = int(np.prod(shape, dtype=np.int64))
            tensors[name] = flat[offset : offset + size].reshape(shape)
            offset += size
    return tensors


def checked(headers: Sequence[BucketHeader], data: Sequence[np.ndarray], directory: Path) -> dict[str, Tensor]:
    """Tensors of a version, by name. Raises BadWeights if they do not fit the model in `directory`. Hashes and reads
    files: do not call it on an event loop."""
    tensors = unpack(headers, data)
    check_names(tensors, directory)
    return tensors


def check_names(tensors: dict[str, Tensor], directory: Path) -> None:
    """Raises BadWeights if names or shapes differ from those of the directory's model."""
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, directory)


def check_shapes(shapes: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """The same for the shapes alone, before any tensor is there."""
    expected = stored(directory).tensors
    for name, shape in shapes.items():
        if expected.get(name) != shape:
            raise BadWeights(f"weight {name} {shape}: {directory} has {expected.get(name)}; same model?")
    if missing := expected.keys() - shapes.keys():
        raise BadWeights(f"weights {sorted(missing)[:3]} of {directory} were not published; same model?")


def write_shared(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one safetensors file under another name, then rename it: complete or absent. Only the owner may read it."""
    from safetensors.torch import save_file

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    os.replace(partial, path)


def _bucket(
    names: list[str], shapes: list[tuple[int, ...]], parts: list[np.ndarray], dtype: str
) -> tuple[np.ndarray, BucketHeader]:
    data = np.concatenate(parts)
    return data, BucketHeader(tuple(names), tuple(shapes), dtype, data.nbytes, fingerprint(data))
