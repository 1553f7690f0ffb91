"""Publishing alone: buckets from the learner, one copy into a store, and checked weights in a file that an engine maps.

The store is memory that was written before, as Ray's is after the first versions. The engine's own reload is not in it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from actors.models import weights
from benchmarks.step.case import Case
from benchmarks.step.models import Built


def cases(built: Built) -> list[Case]:
    named = [(name, parameter.detach()) for name, parameter in built.model.named_parameters()]
    dtype = str(built.model.dtype).removeprefix("torch.")
    size = sum(tensor.nbytes for _, tensor in named)
    store = np.ones(size, np.uint8)

    def run() -> None:
        headers, buckets, end = [], [], 0
        for bucket, header in weights.buckets(named, dtype):
            buckets.append(store[end : end + bucket.nbytes])
            buckets[-1][:] = bucket
            headers.append(header)
            end += bucket.nbytes
        folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        try:
            weights.write_shared(weights.unpack(headers, buckets), folder / "version.safetensors")
        finally:
            shutil.rmtree(folder)

    return [Case("publish", dtype, run, 0.0, 2.0 * 2.0 * size, 0)]  # into the store and into the file
