"""DeepSpeed's C++ ops, which it compiles on a machine's first run.

While torch compiles, a file keeps other processes waiting. It outlives a compiler that is killed, and whoever comes
then waits for ever. So ours compile under a lock that ends with its process, and clear away what was left behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from configs.load import cache_directory


def load_ops(builders: Iterable[str]) -> None:
    """Load ops by the names of their builders, compiling those that are not compiled: one process of a node at a time.
    What this machine cannot compile is left to whoever needs it. Blocks, for minutes at the first time."""
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_directory() / "torch_extensions")))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "compiling").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        for left_behind in folder.glob("*/lock"):
            left_behind.unlink()
        for name in builders:
            _load(name)


def _load(name: str) -> None:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    assert accelerator
    builder = accelerator.create_op_builder(name)
    if builder is not None and deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        builder.load()
