"""Runs inside vLLM's processes: they end with the actor that started them."""

from __future__ import annotations

import os
import threading
import time

LOOKS_EVERY = 1.0  # seconds


class EndsWithParent:
    """vLLM worker extension; `collective_rpc("end_with_parent")` reaches it once an engine is up."""

    def end_with_parent(self) -> None:
        """From now on this process outlives its parent by a second at most. A Ray worker that exits ends its children
        itself, but not where its raylet died first: an engine would then wait for requests for ever."""
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True, name="parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOKS_EVERY)
    os._exit(1)
