"""Runs inside vLLM's processes: ends them when the actor that started them is gone."""

from __future__ import annotations

import os
import select
import threading


class EndsWithActor:
    """vLLM worker extension; `collective_rpc("end_with", args=(pid,))` reaches it once an engine is up."""

    def end_with(self, actor: int) -> None:
        """End this process when the actor's process `actor` ends. A Ray worker that exits kills its children, unless
        its raylet died first: the engine would then wait for requests for ever. With several workers the engine's own
        process stands between them and the actor; it ends when one of them is gone."""
        threading.Thread(target=_watch, args=(actor,), daemon=True, name="actor").start()


def _watch(actor: int) -> None:
    try:
        ends = select.poll()
        ends.register(os.pidfd_open(actor), select.POLLIN)  # this very process, not a later one with its id
        ends.poll()
    except ProcessLookupError:
        pass  # the actor has ended already
    os._exit(1)
