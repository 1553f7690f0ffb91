"""Engines that stay warm from one arm of a sweep to the next.

An arm takes over the members of a role where its recipe makes them of the very same (class, arguments, number,
resources, environment; each kind of them) and the arm before came to its end with all of them idle. They forget that
run (`renew`), get this run's log, and load its starting weights before they serve. Everything else is ended, and
started anew; so are all engines of an arm whose learner shares their GPUs, since who is awake there depends on the run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from configs.roles.sizes import RoleSize
from configs.schema import Recipe
from orchestrator.surface.engines import Engines

if TYPE_CHECKING:
    from orchestrator.pools.layout import MemberSpecs
    from orchestrator.pools.pool import Pool
    from orchestrator.pools.pools import Pools
    from orchestrator.pools.transport import Transport


class WarmEngines(Engines):
    """Not for several runs at a time. `directory` is the sweep's: its name stands for that of every arm where members
    share memory, since they outlive an arm."""

    compared = True

    def __init__(self, directory: Path, members: MemberSpecs | None = None) -> None:
        super().__init__(members)
        self._directory = directory
        self._transport: Transport | None = None
        self._left: dict[str, Pool] = {}  # of the arm before, by role
        self._turns = False  # the arm's engines share GPUs with its learner

    def placed(self, recipe: Recipe) -> Recipe:
        """An arm's recipe under the name of the sweep."""
        home = {"name": self._directory.name, "root": str(self._directory.parent)}
        return recipe.model_copy(update={"run": recipe.run.model_copy(update=home)})

    async def pools(self, recipe: Recipe, vocabulary: int, logs: Path | None) -> Pools:
        from orchestrator.pools.layout import build_pools
        from orchestrator.pools.transport import RayTransport

        self._transport, self._turns = self._transport or RayTransport(), recipe.colocate
        pools = build_pools(self.placed(recipe), self._transport, vocabulary, logs, self._members)
        left, needed = self._left, {} if self._turns else pools.all()
        warm = {role for role, pool in needed.items() if fits(left.get(role), pool, recipe.roles[role])}
        self._left = {role: pool for role, pool in left.items() if role in warm}
        await _stop([pool for role, pool in left.items() if role not in warm])
        await asyncio.gather(*(pools.all()[role].members.take_over(left[role].members) for role in warm))
        self._left = {}
        return pools

    async def end(self, pools: Pools, done: bool, at_once: bool) -> None:
        if done and not at_once and not self._turns:
            self._left = pools.all()
        else:
            await super().end(pools, done, at_once)

    async def close(self) -> None:
        """End what the last arm left."""
        left, self._left = self._left, {}
        await _stop(list(left.values()))


def fits(left: Pool | None, wanted: Pool, size: RoleSize) -> bool:
    """Whether the members that an arm left can serve another's role: made of the same, as many of each kind, idle, and
    of a class of ours, of which is known what a run leaves behind."""
    if left is None:
        return False
    counts = {"": size.members} | {name: kind.members for name, kind in size.kinds.items()}
    return (
        Counter(member.kind for member in left.members) == counts
        and all(left.startup.spec_of(member) == wanted.startup.spec_of(member) for member in left.members)
        and wanted.startup.spec(0).cls.__module__.split(".")[0] == "actors"
        and all(member.serving and not member.load and not member.apart for member in left.members)
    )


async def _stop(pools: list[Pool]) -> None:
    await asyncio.gather(*(pool.members.stop() for pool in pools))
