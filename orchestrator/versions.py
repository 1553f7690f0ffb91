"""Weight versions: published once by the learner, pulled by each member at a boundary of its own.

Pull, not broadcast: a member may come or go and nothing hangs. The references are the orchestrator's, so a version
outlives the member that reads it and the learner that made it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from orchestrator.pool import Pool, PoolMember
from orchestrator.transport import MemberDied, ValueLost


@dataclass(frozen=True)
class Version:
    """`headers` describe the buckets that `refs` name."""

    number: int
    headers: tuple[Any, ...]
    refs: tuple[Any, ...]


class Versions:
    """The current version and its way to the members of a pool."""

    def __init__(self) -> None:
        self.current: Version | None = None

    async def pull(self, pool: Pool, member: PoolMember) -> None:
        """Bring one member to the current version, and again if a newer one came meanwhile.

        Raises MemberDied. A member whose load raised is as good as dead: its engine may hold half a version.
        """
        async with member.turn:  # two pulls of one version load it once
            await self._pull(pool, member)

    async def pull_all(self, pool: Pool) -> None:
        """Bring every serving member up to date; one that dies on the way is replaced, and admitted with the current
        version."""
        pulls = await asyncio.gather(*(self.pull(pool, m) for m in pool.serving()), return_exceptions=True)
        for failure in pulls:
            if isinstance(failure, BaseException) and not isinstance(failure, MemberDied):
                raise failure

    async def _pull(self, pool: Pool, member: PoolMember) -> None:
        while self.current is not None and member.version != self.current.number:
            target = self.current
            try:
                member.version = await pool.call_member(member, "load", target.number, target.headers, *target.refs)
            except (MemberDied, ValueLost):
                raise
            except Exception as error:
                if member.serving:
                    pool.replace(member)
                raise MemberDied(f"loading version {target.number} failed: {error}") from error
