"""File work of a run in threads. A thread cannot be cancelled, so its caller waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def uninterrupted(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """The result of `work`, done in a thread. Raises what it raises. If the caller is cancelled meanwhile,
    CancelledError is raised when the work has ended: the attempt that follows never finds an earlier one still writing
    to its folder."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments, **named))
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError as asked:
            cancelled = asked
    if cancelled:
        working.exception()  # is of no use to a caller that has gone
        raise cancelled
    return working.result()
