"""Tells errors of a member's device, memory or connections from other errors. Pure.

A member that raises such an error is sick: it is replaced, and its work is done again elsewhere. Any other error is a
fault of the program or its input, and ends the run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

OUT_OF_MEMORY = 3  # out-of-memory errors on one shape of call that end a run
Fault = Literal["memory", "device"]

MEMORY = re.compile(
    r"(CUDA|HIP|XPU|NPU) (error: )?out of memory|(CUDA_ERROR_OUT_OF_MEMORY|_STATUS_ALLOC_FAILED|cudaErrorMemory)"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory|alloc_cpu\.cpp.*memory|Tried to allocate .* GiB",
    re.IGNORECASE,
)
DEVICE = re.compile(
    r"\b(CUDA|HIP) (driver )?error\b|\bCU(BLAS|DNN|SOLVER|SPARSE|FFT)_STATUS_|\bcu(BLAS|DNN) (error|failure)"
    r"|\bCUDA_ERROR_|\bNCCL\b|\bnccl(Internal|System|Unhandled|Remote)|gloo/|\bgloo\b.*(error|timed out)"
    r"|Connection (reset|closed|refused|aborted)|Broken pipe|Socket (closed|Timeout)|Watchdog caught collective"
    r"|uncorrectable ECC|device-side assert|unspecified launch failure|illegal memory access",
    re.IGNORECASE,
)
MEMORY_NAMES = {"OutOfMemoryError", "MemoryError", "ArrayMemoryError"}
DEVICE_NAMES = {
    *("AcceleratorError", "CudaError", "DistBackendError", "DistNetworkError", "DistStoreError", "NCCLError"),
    *("EngineDeadError", "ConnectionResetError", "ConnectionAbortedError", "BrokenPipeError", "ServerAway"),
}
GENERIC_NAMES = {"RuntimeError", "DistError", "EngineGenerateError", "Exception", "OSError", "ConnectionError"}
HANDLED = "During handling of the above exception, another exception occurred"
RAISED = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$", re.MULTILINE)  # the last line of a traceback, and of each cause


def fault_of(error: BaseException, traceback: str = "") -> Fault | None:
    """The fault behind an error or its causes; None for an error of the program. `traceback` is the text of an error
    from another process, which holds its causes."""
    unhandled = traceback.rsplit(HANDLED, 1)[-1]
    found = {_fault(name, text) for name, text in (*_chain(error), *RAISED.findall(unhandled))}
    return "memory" if "memory" in found else "device" if "device" in found else None


def _chain(error: BaseException) -> Iterator[tuple[str, str]]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield type(link).__name__, str(link)
        yield from ((cls.__name__, "") for cls in type(link).__mro__[1:])
        link = link.__cause__


def _fault(name: str, text: str) -> Fault | None:
    """The fault of an error, by class name and message. The message counts only for classes that devices and programs
    both raise."""
    name = name.rsplit(".", 1)[-1]
    if name in MEMORY_NAMES:
        return "memory"
    if name in DEVICE_NAMES or name in GENERIC_NAMES:
        if MEMORY.search(text):
            return "memory"
        return "device" if name in DEVICE_NAMES or DEVICE.search(text) else None
    return None


@dataclass
class Shortages:
    """Counts out-of-memory errors of a role by shape: the method, and the bit length of the load (tokens or responses).
    An answer at a shape clears its count and those of smaller ones."""

    times: Counter[tuple[str, int]] = field(default_factory=Counter)

    def note(self, method: str, size: int) -> bool:
        """Count a member that ran out of memory. Returns whether to end the run."""
        shape = method, size.bit_length()
        self.times[shape] += 1
        return self.times[shape] >= OUT_OF_MEMORY

    def answered(self, method: str, size: int) -> None:
        """Clear the counts of shapes that fit."""
        for shape in [s for s in self.times if s[0] == method and s[1] <= size.bit_length()]:
            del self.times[shape]


def remedy(role: str) -> str:
    """The recipe keys to lower when a role, or a kind of its members, runs out of memory."""
    if role == "learner":
        return "lower batch.tokens_per_microbatch or learner.tokens_per_chunk"
    if role.startswith("scorer."):
        return f"lower {role}.tokens_per_batch, or {role}.gpu_memory_fraction under vLLM"
    if role.partition(".")[0] in ("rollout", "teacher_rollout"):
        return f"lower {role}.max_concurrent, or {role}.gpu_memory_fraction, which leaves the rest to activations"
    return f"lower {'stream.coalesce_samples' if role == 'reward' else f'the load of {role}'}"


def shortage(role: str, method: str, message: str) -> str:
    """Why a run ends, in one line."""
    first = message.strip().splitlines()[0] if message.strip() else "no message"
    return f"{role}: out of memory {OUT_OF_MEMORY} times in {method} on work of one size; {remedy(role)} ({first})"
