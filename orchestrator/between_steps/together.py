"""Measurements that may run at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def together(works: Sequence[Callable[[], Awaitable[T]]], in_turns: bool = False) -> list[T]:
    """The results of all, in order; `in_turns`: one after the other. Raises what the first that fails raises, after the
    others have ended too."""
    if in_turns:
        return [await work() for work in works]
    doing: list[asyncio.Future[Any]] = [asyncio.ensure_future(work()) for work in works]
    try:
        return list(await asyncio.gather(*doing))
    finally:
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
