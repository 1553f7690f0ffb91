"""One copy of the student on the GPU of the learner's rank 0, which processes of its node read by CUDA IPC.

The copy is allocated once and filled anew for each version: a process that died while it read takes nothing with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from actors.transfer.layout import Layout

OF_STORAGE = (  # torch's names for what identifies a shared storage, all plain values
    "storage_handle",
    "storage_size_bytes",
    "storage_offset_bytes",
    "ref_counter_handle",
    "ref_counter_offset",
    "event_handle",
    "event_sync_required",
)
Handle = dict[str, Any]


class Staging:
    """The copy. `fill` must not run while a member reads."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self._buffer = torch.empty(layout.offsets[-1], dtype=torch.uint8, device=device)
        self.handle = shared_handle(self._buffer)
        self._views = views(layout, self._buffer)

    def fill(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the tensors of a version, in any dtype. Returns when all of them are there."""
        for name, tensor in tensors:
            self._views[name].copy_(tensor)
        if self._buffer.is_cuda:
            torch.cuda.synchronize(self._buffer.device)


def views(layout: Layout, buffer: Tensor) -> dict[str, Tensor]:
    """The tensors of a layout, by name, in a buffer of bytes [layout.offsets[-1]]."""
    parts = zip(layout.names, layout.dtypes, layout.shapes, layout.offsets, layout.sizes, strict=False)
    return {
        name: buffer[start : start + size].view(getattr(torch, dtype)).view(shape)
        for name, dtype, shape, start, size in parts
    }


def shared_handle(buffer: Tensor) -> Handle:
    """What another process needs to open a buffer on a GPU: bytes, numbers and booleans, by torch's names."""
    from torch.multiprocessing.reductions import reduce_tensor

    rebuild, arguments = reduce_tensor(buffer)
    named = dict(zip(inspect.signature(rebuild).parameters, arguments, strict=True))
    return {name: named[name] for name in OF_STORAGE}


def opening(handle: Handle, layout: Layout) -> list[tuple[Any, ...]]:
    """Arguments of torch's `rebuild_cuda_tensor` for each tensor of the layout. vLLM puts in the reader's device."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    order = tuple(inspect.signature(rebuild_cuda_tensor).parameters)
    found = []
    for name, dtype, shape, start in zip(layout.names, layout.dtypes, layout.shapes, layout.offsets, strict=False):
        kind = getattr(torch, dtype)
        assert start % kind.itemsize == 0, f"{name} is not aligned"
        values = handle | {
            "tensor_cls": Tensor,
            "tensor_size": torch.Size(shape),
            "tensor_stride": torch.empty(shape, device="meta").stride(),
            "tensor_offset": start // kind.itemsize,
            "storage_cls": torch.storage.TypedStorage,
            "dtype": kind,
            "storage_device": 0,
            "requires_grad": False,
        }
        found.append(tuple(values[parameter] for parameter in order))
    return found
