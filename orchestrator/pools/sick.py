"""What a member raises and does not mean: its device, its memory or its connections have failed. Pure.

Such a member lives, and is as good as dead: it is replaced, and its work is done again elsewhere. What is raised for
any other reason is a fault of the program or its input, and ends the run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

OUT_OF_MEMORY = 3  # times on calls of one shape that end a run
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
    *("EngineDeadError", "ConnectionResetError", "ConnectionAbortedError", "BrokenPipeError"),
}
SAYS_MUCH = {"RuntimeError", "DistError", "EngineGenerateError", "Exception", "OSError", "ConnectionError"}  # as torch
HANDLED = "During handling of the above exception, another exception occurred"
RAISED = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$", re.MULTILINE)  # a traceback's last line, and those of its causes


def fault_of(error: BaseException, traceback: str = "") -> Fault | None:
    """What failed, of an error or of what caused it; None where neither is a device's. `traceback` is the text that
    came with an error from another process, where causes are lines."""
    told = traceback.rsplit(HANDLED, 1)[-1]  # what was raised before was dealt with
    found = {_fault(name, text) for name, text in (*_chain(error), *RAISED.findall(told))}
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
    """Of a class and what it said. Words count only where nothing but words tells errors apart: who raises a
    ValueError means the value."""
    name = name.rsplit(".", 1)[-1]
    if name in MEMORY_NAMES:
        return "memory"
    if name in DEVICE_NAMES or name in SAYS_MUCH:
        if MEMORY.search(text):
            return "memory"
        return "device" if name in DEVICE_NAMES or DEVICE.search(text) else None
    return None


@dataclass
class Shortages:
    """How often members of a role ran out of memory, by the shape of what they did: its method, and its size in the
    pool's units (tokens, responses) up to the next power of two. What is answered at a shape, or a larger one, fits."""

    times: Counter[tuple[str, int]] = field(default_factory=Counter)

    def note(self, method: str, size: int) -> bool:
        """A member ran out of memory. Returns whether the run is to end."""
        shape = method, size.bit_length()
        self.times[shape] += 1
        return self.times[shape] >= OUT_OF_MEMORY

    def answered(self, method: str, size: int) -> None:
        for shape in [s for s in self.times if s[0] == method and s[1] <= size.bit_length()]:
            del self.times[shape]


def remedy(role: str) -> str:
    """The keys to lower where a role runs out of memory."""
    if role == "learner":
        return "lower batch.tokens_per_microbatch or learner.tokens_per_chunk"
    if role.startswith("scorer."):
        return f"lower {role}.tokens_per_batch, or {role}.gpu_memory_fraction under vLLM"
    if role in ("rollout", "teacher_rollout"):
        return f"lower {role}.max_concurrent, or {role}.gpu_memory_fraction, which leaves the rest to activations"
    return f"lower {'stream.coalesce_samples' if role == 'reward' else f'the load of {role}'}"


def shortage(role: str, method: str, said: str) -> str:
    """Why a run ends, in one line."""
    first = said.strip().splitlines()[0] if said.strip() else "no word"
    return f"{role}: out of memory {OUT_OF_MEMORY} times in {method} on work of one size; {remedy(role)} ({first})"
