"""The copy on the learner's GPU: what is written is what another process reads, through torch's own function. The GPU
is the only part that is not there."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions

from actors.learning.learner import Learner
from actors.transfer import shared
from actors.transfer.layout import Layout, layout_of
from actors.transfer.shared import OF_STORAGE, Staging, opening, shared_handle
from tests.unit.learning.test_learner import rank_of_two

SHAPES = {"w": (3, 5), "router.bias": (5,), "b": (3,), "empty": (0,)}
LAYOUT = layout_of(SHAPES, "bfloat16", precise=("router.bias",))
WEIGHTS = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in SHAPES.items()}
HANDLE: dict[str, Any] = dict.fromkeys(OF_STORAGE, b"x") | {"storage_size_bytes": 1}


@pytest.fixture
def staging(monkeypatch: pytest.MonkeyPatch) -> Staging:
    monkeypatch.setattr(shared, "shared_handle", lambda buffer: HANDLE)
    return Staging(LAYOUT, torch.device("cpu"))


def read(staging: Staging, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What torch makes of the arguments in a process that opens the copy."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    whole = staging._buffer.untyped_storage()
    monkeypatch.setattr(torch.storage.TypedStorage, "_new_shared_cuda", lambda *of: whole, raising=False)
    monkeypatch.setattr(reductions, "storage_from_cache", lambda cls, key: None)
    arguments = opening(staging.handle, layout)
    return {name: reductions.rebuild_cuda_tensor(*each) for name, each in zip(layout.names, arguments, strict=True)}


def test_what_the_learner_writes_is_what_a_member_reads(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    for factor in (1.0, 2.0):  # a second version in the same copy
        staging.fill((name, tensor * factor) for name, tensor in WEIGHTS.items())
        found = read(staging, LAYOUT, monkeypatch)
        for name, dtype in zip(LAYOUT.names, LAYOUT.dtypes, strict=True):
            expected = (WEIGHTS[name] * factor).to(getattr(torch, dtype))
            assert found[name].dtype == expected.dtype and torch.equal(found[name], expected), name


def test_the_readers_device_is_where_vllm_puts_its_own() -> None:
    order = [*inspect.signature(reductions.rebuild_cuda_tensor).parameters]
    assert order[6] == "storage_device", "vLLM overwrites the seventh argument"
    assert set(OF_STORAGE) < set(order)


def test_a_handle_is_of_plain_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM's messages pass on without pickles."""
    named = [*inspect.signature(reductions.rebuild_cuda_tensor).parameters]
    made = (reductions.rebuild_cuda_tensor, tuple(f"<{name}>" for name in named))
    monkeypatch.setattr(reductions, "reduce_tensor", lambda tensor: made)
    assert shared_handle(torch.empty(1)) == {name: f"<{name}>" for name in OF_STORAGE}


def test_rank_0_fills_one_copy_for_all_versions_and_others_gather_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "shared_handle", lambda buffer: HANDLE)
    first, second = (rank_of_two(rank, tmp_path) for rank in (0, 1))
    layout, handle = _staged(first)
    copy = first._staging
    assert layout.by_name == {"w": (3, 4), "b": (3,)} and handle == HANDLE and copy is not None
    linear = first._built.model
    with torch.no_grad():
        linear.weight += 1.0
    assert _staged(first)[0] == layout and first._staging is copy
    assert torch.equal(read(copy, layout, monkeypatch)["w"], linear.weight)
    assert second.stage() is None and second._staging is None


def _staged(learner: Learner) -> tuple[Layout, dict[str, Any]]:
    staged = learner.stage()
    assert staged is not None
    return staged
