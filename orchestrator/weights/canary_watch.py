"""Checks scorers by fixed texts when they load weights, wake up or are suspected, and replaces wrong members.
`canaries.py` decides which are wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from actors.scoring.canary import canary_texts
from configs.schema import Recipe
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.startup import RoleFailed
from orchestrator.pools.transport import MemberDied
from orchestrator.weights.canaries import Canaries, CanaryResult, Examined, Occasion


class TeacherWrong(RoleFailed):
    """Two members of a scored model in a row served wrong weights."""


class Undecided(Exception):
    """Whether a member is wrong shows once the successor of another one was checked: ask again."""


class CanaryWatch:
    """`vocabulary` is the models' common logit width."""

    def __init__(self, recipe: Recipe, pools: Pools, vocabulary: int, notice: Callable[[str], None]) -> None:
        self._pools = pools
        self._notice = notice
        self._models = {id(pool): model for model, pool in pools.scorers.items()}
        self._canaries = {model: Canaries(recipe.scorer_of(model).dtype) for model in pools.scorers}
        contexts = {model: recipe.scorer_of(model).max_context_tokens for model in pools.scorers}
        self._texts = {model: canary_texts(vocabulary, context) for model, context in contexts.items()}
        self.failures: Counter[str] = Counter()  # wrong members found, by model
        self._alarmed: set[str] = set()  # models with an alarm notice
        self._checking = {model: asyncio.Lock() for model in pools.scorers}

    def watches(self, pool: Pool) -> bool:
        """Whether its members are scorers, and there are texts for their contexts."""
        return bool(self._texts.get(self._models.get(id(pool), "")))

    async def check(self, pool: Pool, member: PoolMember, version: int, occasion: Occasion = Occasion.LOAD) -> None:
        """Check a member at a version; other roles' members are not checked. Raises MemberDied if it is wrong and
        replaced, TeacherWrong, failing the role, if two in a row are, and Undecided."""
        if not self.watches(pool) or version < 0:  # -1: it has no version yet
            return
        model = self._models[id(pool)]
        canaries = self._canaries[model]
        repeats = canaries.noise is None
        readings = await pool.call_member(member, "canary", self._texts[model], repeats)
        examined = Examined(member.number, member.place, pool.members.newest)
        joining = {other.place for other in pool.members if not other.serving}
        result = canaries.judge(examined, version, occasion, readings, joining)
        if result.open:
            raise Undecided
        if result.wrong:
            self.failures[model] += len(result.wrong)
            await self._replace(pool, member, result)

    async def check_woken(self, pool: Pool, member: PoolMember) -> None:
        """Check a member that has woken up. Raises TeacherWrong."""
        await self.check(pool, member, member.version, Occasion.WAKE)

    async def alarm(self, model: str, why: str) -> bool:
        """Check all members of a model whose scores are suspicious. Returns whether one was wrong. Raises
        TeacherWrong."""
        pool = self._pools.scorers[model]
        if model not in self._alarmed:
            self._alarmed.add(model)
            self._notice(
                f"scores of {model} are suspicious: {why}; its members are checked, here and whenever it comes"
            )
        before = pool.members.restarts
        async with self._checking[model], pool.turn():
            checks = (self._is_wrong(pool, member) for member in pool.members.serving())
            return any(await asyncio.gather(*checks)) or pool.members.restarts > before

    async def _is_wrong(self, pool: Pool, member: PoolMember) -> bool:
        """Whether a member is wrong or dead."""
        try:
            await self.check(pool, member, member.version, Occasion.ALARM)
        except MemberDied:
            return True
        return False

    async def _replace(self, pool: Pool, member: PoolMember, result: CanaryResult) -> None:
        if result.final:
            failure = TeacherWrong(
                f"{pool.role}-{member.number}: {result.why}, as it was with the member before it; "
                f"are the model's files whole and alike on every node?"
            )
            await pool.members.fail(failure)
            raise failure
        death = MemberDied(f"{pool.role}-{member.number}: {result.why}")
        for other in [m for m in pool.members if m.number in result.wrong]:
            if other.serving:
                pool.members.replace(other, death)
            elif other is not member:  # it is joining: its pool finds it dead
                await pool.transport.kill(other.actors)
        if member.number in result.wrong:
            raise death
