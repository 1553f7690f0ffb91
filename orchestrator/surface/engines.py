"""Who brings the engines of a run. A run alone starts its own and ends them; see research/warm.py for runs in a row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Recipe

if TYPE_CHECKING:
    from orchestrator.pools.layout import MemberSpecs
    from orchestrator.pools.pools import Pools


class Engines:
    """The engines of one run. `members`: see build_pools. `compared`: whether the machines were compared with the run
    before, when none of its engines was there."""

    compared = False

    def __init__(self, members: MemberSpecs | None = None) -> None:
        self._members = members

    async def pools(self, recipe: Recipe, vocabulary: int, logs: Path | None) -> Pools:
        """The pools of a run; what has no member yet, the run starts."""
        from orchestrator.pools.layout import build_pools
        from orchestrator.pools.transport import RayTransport

        return build_pools(recipe, RayTransport(), vocabulary, logs, self._members)

    async def end(self, pools: Pools, done: bool, at_once: bool) -> None:
        """The run is over; `done` if it came to its end. Its members stop, `at_once` without being asked first."""
        await asyncio.gather(*(pool.members.stop(at_once) for pool in pools.all().values()))
