"""What the machine can do at most, measured beside each case: a matrix product's rate, and a copy's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Limits:
    """FLOP/s of a square matrix product; bytes/s of a copy into memory that was written before, read and written."""

    flops: float
    bytes: float

    def seconds(self, flops: float, moved: float) -> float:
        """The least time that takes so many operations and moves so many bytes."""
        return max(flops / self.flops, moved / self.bytes)


Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: on a machine that others share


def measured(device: torch.device, clock: Clock) -> Limits:
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.zeros_like(source)
    product = fastest(lambda: torch.mm(left, right), device, clock)
    copy = fastest(lambda: target.copy_(source), device, clock)
    return Limits(2.0 * side**3 / product, 2.0 * source.nbytes / copy)


def fastest(call: Callable[[], object], device: torch.device, clock: Clock, times: int = 3) -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    call()
    return min(took(call, device, clock) for _ in range(times))


def took(call: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds of one call, until the device is done."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    synchronise()
    began = clock()
    call()
    synchronise()
    return clock() - began
