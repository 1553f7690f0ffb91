"""Runs inside vLLM's processes: they end with the actor that started them."""

from __future__ import annotations

import os
import select
import threading


class EndsWithActor:
    """vLLM worker extension; `collective_rpc("end_with", args=(pid,))` reaches it once an engine is up."""

    def end_with(self, actor: int) -> None:
        """From now on this process does not outlive the actor's. A Ray worker that exits ends its children itself, but
        not where its raylet died first: an engine would then wait for requests for ever. With several workers the
        engine's own process is between them and the actor; it ends by itself when one of them is gone."""
        threading.Thread(target=_watch, args=(actor,), daemon=True, name="actor").start()


def _watch(actor: int) -> None:
    try:
        ends = select.poll()
        ends.register(os.pidfd_open(actor), select.POLLIN)  # this very process, not the next of its number
        ends.poll()
    except ProcessLookupError:
        pass  # it has ended already
    os._exit(1)
