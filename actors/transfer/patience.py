"""Limits on waiting for another process. Neither NCCL nor vLLM's transfer engine has one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any


class TransferBroken(Exception):
    """A transfer did not come to its end. This process lives and may take part in another one."""


@contextmanager
def letting_go(seconds: float, let_go: Callable[[], Any]) -> Iterator[None]:
    """Call `let_go` in a thread if the body takes longer than `seconds`: it must end what the body waits for. Raises
    TransferBroken then, and for every error of the body; its cause is left out, since a peer's death looks like a fault
    of this process's device."""
    late = threading.Event()

    def end() -> None:
        late.set()
        let_go()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        raise _broken(late, seconds, str(error)) from None
    finally:
        timer.cancel()
    if late.is_set():
        raise _broken(late, seconds, "")


def in_time(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work` returns, in a thread of its own. Raises TransferBroken if it raises, or takes longer than `seconds`;
    the thread stays behind, since nothing ends NCCL's wait for a rank that never comes."""
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
        raise TransferBroken(f"the others did not come within {seconds:g} s") from None
    if error is not None:
        raise TransferBroken(str(error)) from None
    return found


def _broken(late: threading.Event, seconds: float, said: str) -> TransferBroken:
    if late.is_set():
        return TransferBroken(f"the other end did not go on within {seconds:g} s")
    return TransferBroken(said)
