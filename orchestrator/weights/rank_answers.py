"""Answers of several ranks that are called together.

When a rank dies inside a collective, the others' broken connections are often reported first. So an error waits for the
answers of the other ranks, and the most telling error is raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from orchestrator.pools.transport import MemberDied, MemberSick, ValueLost

GRACE = 60.0  # seconds within which the death of a rank or of its node is reported
SHORT_GRACE = 5.0  # seconds to wait for a death when a fault of the machine is known already


async def together(answers: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All answers in order, or the most telling error. A death is raised at once. Other errors wait until all ranks
    have answered or the grace is over: a fault of the machine comes first, then what a rank raised, a lost value."""
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    try:
        waiting = (await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION))[1]
        until = asyncio.get_running_loop().time() + GRACE
        while waiting and not any(_is_death(error) for error in _errors(tasks)):
            now = asyncio.get_running_loop().time()
            if any(isinstance(error, MemberSick) for error in _errors(tasks)):
                until = min(until, now + SHORT_GRACE)
            left = until - now
            if left <= 0:
                break
            waiting = (await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED))[1]
        if errors := _errors(tasks):
            raise min(errors, key=_rank)
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()


def _errors(tasks: Sequence[asyncio.Future[Any]]) -> list[BaseException]:
    done = [task for task in tasks if task.done() and not task.cancelled()]
    return [error for task in done if (error := task.exception())]


def _is_death(error: BaseException) -> bool:
    return isinstance(error, MemberDied) and not isinstance(error, MemberSick)


def _rank(error: BaseException) -> int:
    """Deaths first, then faults of a machine, other errors, lost values."""
    if _is_death(error):
        return 0
    if isinstance(error, MemberSick):
        return 1
    return 3 if isinstance(error, ValueLost) else 2
