"""Faults that are injected into simulated transfers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.pools.transport import MemberDied


@dataclass
class Faults:
    """What happens at an end of a transfer of a version: "" (nothing), "dies", "hangs" or "raises"."""

    fault: Callable[[str, int], str] = lambda end, version: ""

    async def inject(self, end: str, version: int) -> None:
        fate = self.fault(end, version)
        if fate == "dies":
            raise MemberDied(f"{end} was killed in version {version}")
        if fate == "hangs":
            await asyncio.Event().wait()
        if fate == "raises":
            raise RuntimeError("CUDA error")


def once(end: str, version: int, fate: str) -> Callable[[str, int], str]:
    """A fault that happens once, at an end and from a version on."""
    left = [fate]
    return lambda e, v: left.pop() if left and e == end and v >= version else ""
