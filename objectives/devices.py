"""Numbers between the host and a GPU, without the host waiting for it: it launches the next micro-batch meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. To a GPU it goes through pinned memory, which torch keeps until the copy is made."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the host: all copies are launched, and then waited for once."""
    found = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.current_stream().synchronize()
    return found


@lru_cache(maxsize=64)
def constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers as int64 on a device, made there once. To be read only."""
    with torch.inference_mode(False):  # it may be saved for a backward pass
        return torch.tensor(values, dtype=torch.int64, device=device)
