"""vLLM's engine in a thread of the member's own process, on a CPU.

vLLM gives an engine a process of its own, which imports everything again: a third of a member's start, and half a GiB.
Here vLLM's own sockets and messages stay between the two, so that requests, pauses and errors are what they are with
two processes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from vllm import AsyncEngineArgs
from vllm.utils.network_utils import get_open_zmq_ipc_path
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor import Executor

END_SECONDS = 10.0  # for the engine to end


class Core(EngineCoreProc):
    """vLLM's engine at addresses that are known: it has nothing to agree on with whoever started it."""

    def __init__(self, config: Any, log_stats: bool, addresses: EngineZmqAddresses) -> None:
        self._known = addresses
        super().__init__(config, True, "", Executor.get_class(config), log_stats)

    @contextmanager
    def _perform_handshakes(self, *_: Any) -> Iterator[EngineZmqAddresses]:
        yield self._known

    def end(self) -> None:
        """Ask its loop to end. Called from another thread."""
        self.shutdown_state = EngineShutdownState.REQUESTED
        self.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))


class InProcess(AsyncLLM):
    """An AsyncLLM over a core that runs in a thread of this process."""

    running: tuple[Core, threading.Thread] | None = None

    def shutdown(self, timeout: float | None = None) -> None:
        super().shutdown(timeout)
        if self.running is not None:
            (core, thread), self.running = self.running, None
            core.end()
            thread.join(END_SECONDS)


def build(arguments: AsyncEngineArgs, loggers: list[Any]) -> InProcess:
    """Build the engine, and what calls it. Raises what the engine raises while it is built."""
    config, log_stats = arguments.create_engine_config(), not arguments.disable_log_stats
    where = EngineZmqAddresses([get_open_zmq_ipc_path()], [get_open_zmq_ipc_path()])
    ready: Future[Core] = Future()
    make = partial(Core, copy.deepcopy(config), log_stats, where)
    thread = threading.Thread(target=_run, args=(make, ready), daemon=True, name="engine")
    thread.start()
    core = ready.result()
    engine = InProcess(
        config,
        Executor.get_class(config),
        log_stats,
        log_requests=arguments.enable_log_requests,
        stat_loggers=loggers,
        client_addresses={"input_address": where.inputs[0], "output_address": where.outputs[0]},
    )
    engine.running = core, thread
    return engine


def _run(make: Callable[[], Core], ready: Future[Core]) -> None:
    """The life of an engine. An error of a step reaches all who wait for an answer as EngineDeadError."""
    try:
        core = make()
    except BaseException as error:
        ready.set_exception(error)
        return
    ready.set_result(core)
    try:
        core.run_busy_loop()
    except SystemExit:  # asked to end
        core.shutdown()
    except BaseException:
        core._send_engine_dead()
        raise
