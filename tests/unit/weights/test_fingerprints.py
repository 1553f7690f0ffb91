"""Every bucket is hashed once where it is published and once where it is loaded, and not by SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from actors.models import weights
from actors.models.fingerprint import fingerprint
from actors.wire.records import BadWeights


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each buffer that is hashed; SHA-256 raises."""
    sizes: list[int] = []

    def counted(data: Any) -> str:
        sizes.append(memoryview(data).nbytes)
        return fingerprint(data)

    def slow(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were hashed by SHA-256")

    monkeypatch.setattr(weights, "fingerprint", counted)
    monkeypatch.setattr(hashlib, "sha256", slow)
    return sizes


def test_each_bucket_is_hashed_once_on_either_side(
    hashed: list[int], monkeypatch: pytest.MonkeyPatch, models: dict[str, Path]
) -> None:
    monkeypatch.setattr(weights, "BUCKET_BYTES", 2**15)
    tensors = weights.stored(models["teacher"]).tensors
    published = [(name, torch.zeros(shape)) for name, shape in tensors.items()]
    parts = list(weights.buckets(published, "bfloat16"))
    assert len(parts) > 2 and hashed == [data.nbytes for data, _ in parts]
    hashed.clear()
    found = weights.checked([header for _, header in parts], [data for data, _ in parts], models["teacher"])
    assert hashed == [data.nbytes for data, _ in parts] and found.keys() == tensors.keys()
    assert sum(hashed) == sum(2 * tensor.numel() for _, tensor in published)


def test_the_hash_is_blake3_and_sees_one_bit() -> None:
    data = bytearray(b"weights" * 9)
    before = fingerprint(data)
    assert before == blake3(bytes(data)).hexdigest() != hashlib.sha256(data).hexdigest()
    data[5] ^= 1
    assert fingerprint(data) != before


def test_a_bucket_of_one_changed_bit_is_refused() -> None:
    ((data, header),) = weights.buckets([("w", torch.ones(9))], "float32")
    data[3] ^= 1
    with pytest.raises(BadWeights, match="begins with w changed on the way"):
        weights.unpack([header], [data])
