"""DeepSpeed's C++ ops, which it compiles where they are first used.

While torch compiles, a lock file makes other processes wait. If the compiler is killed the file stays, and they wait
for ever. So ops are compiled here under a lock that ends with its process, and stale lock files are removed first.
Every environment has a folder of its own: what one has compiled another compiles anew, since the paths differ.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from configs.load import cache_directory


def own_folder() -> Path:
    """Where the ops that this Python environment compiles are kept."""
    return cache_directory() / "torch_extensions" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]


def load_ops(builders: Iterable[str]) -> None:
    """Load ops by the names of their builders, compiling them if needed, one process of a node at a time. Skips ops
    that this machine cannot compile. Blocks, the first time for minutes."""
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(own_folder())))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "compiling").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):
            stale.unlink()
        for name in builders:
            _load(name)


def without_shared_memory_op() -> None:
    """Have DeepSpeed's backend on CPUs do without an op that only inference calls (`inference_all_reduce`). It would be
    compiled on a machine's first run, for a minute or more."""
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False  # what the backend asks before it compiles


def _load(name: str) -> None:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    assert accelerator
    builder = accelerator.create_op_builder(name)
    if builder is not None and deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        builder.load()
