"""What several ranks answer that are called together.

One that dies inside a collective is often told of last: the others' broken connections come first. So an error waits
for what the other ranks have to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from orchestrator.pools.transport import MemberDied, MemberSick, ValueLost

GRACE = 60.0  # seconds in which the death of a rank becomes known, also that of a whole node
SHORT_GRACE = 5.0  # the same where a death would only name the cause of what is known to be a fault of the machine


async def together(answers: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All answers, or the error that tells most: a death at once; else a member's fault, the loss of a value, or what a
    rank raised, once every rank has answered or had the time to. Nobody waits for survivors of a death."""
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
    """Deaths tell most, then faults of a machine; a value that is lost only where all else is well."""
    if _is_death(error):
        return 0
    if isinstance(error, MemberSick):
        return 1
    return 3 if isinstance(error, ValueLost) else 2
