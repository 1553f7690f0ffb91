"""Limits on waiting for another process. Neither NCCL nor vLLM's transfer engine has one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from torch import OutOfMemoryError

REMEDY = "if nothing died, raise deadlines.transfer"


class TransferBroken(Exception):
    """A transfer did not come to its end. This process lives and may take part in another one."""


@contextmanager
def letting_go(seconds: float, let_go: Callable[[], Any]) -> Iterator[None]:
    """Call `let_go` in a thread if the body takes longer than `seconds`: it must end what the body waits for. Raises
    TransferBroken then, and for errors of the body; their cause is left out, since a peer's death looks like a fault of
    this process's device. A lack of memory is this process's own, and is raised as it is."""
    late = threading.Event()

    def end() -> None:
        late.set()
        let_go()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        raise _broken(late, seconds, str(error)) from None
    finally:
        timer.cancel()
    if late.is_set():
        raise _broken(late, seconds, "")


def in_time(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work` returns, in a thread of its own. Raises as `letting_go` does. The thread of work that takes longer
    than `seconds` stays behind, since nothing ends NCCL's wait for a rank that never comes."""
    answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

    def answer() -> None:
        try:
            answers.put((work(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True, name="transfer").start()
    try:
        found, error = answers.get(timeout=seconds)
    except Empty:
        raise TransferBroken(f"the others did not come within {seconds:g} s; {REMEDY}") from None
    if isinstance(error, OutOfMemoryError):
        raise error
    if error is not None:
        raise TransferBroken(str(error)) from None
    return found


def _broken(late: threading.Event, seconds: float, said: str) -> TransferBroken:
    if late.is_set():
        return TransferBroken(f"the other end did not go on within {seconds:g} s; {REMEDY}")
    return TransferBroken(said)
