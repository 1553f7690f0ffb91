"""Asks scorers for their scores of fixed texts whenever their weights came, woke or are suspected, and replaces members
that are wrong. `canaries.py` decides which are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actors.scoring.canary import canary_texts
from configs.schema import Recipe
from orchestrator.pools.pool import Pool, PoolMember, RoleFailed
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import MemberDied
from orchestrator.weights.canaries import Asked, Canaries, Occasion, Verdict


class TeacherWrong(RoleFailed):
    """A scored model was wrong, and was still wrong in the member that came for it."""


class CanaryWatch:
    """`vocabulary` is the models' common logit width."""

    def __init__(self, recipe: Recipe, pools: Pools, vocabulary: int, notice: Callable[[str], None]) -> None:
        self._pools = pools
        self._notice = notice
        self._models = {id(pool): model for model, pool in pools.scorers.items()}
        self._canaries = {model: Canaries(recipe.scorer_of(model).dtype) for model in pools.scorers}
        contexts = {model: recipe.scorer_of(model).max_context_tokens for model in pools.scorers}
        self._texts = {model: canary_texts(vocabulary, context) for model, context in contexts.items()}
        self._alarmed: set[str] = set()  # models that an alarm was said of
        self._looking = {model: asyncio.Lock() for model in pools.scorers}

    def watches(self, pool: Pool) -> bool:
        """Whether its members score, and there are texts to ask them about."""
        return bool(self._texts.get(self._models.get(id(pool), "")))

    async def check(self, pool: Pool, member: PoolMember, version: int, occasion: Occasion = Occasion.LOAD) -> None:
        """Nothing for who scores nothing. Raises MemberDied where the member is wrong: it is replaced; and TeacherWrong
        where that has come twice in a row: then the role has failed."""
        if not self.watches(pool) or version < 0:  # -1: it has not been brought to any yet
            return
        model = self._models[id(pool)]
        canaries = self._canaries[model]
        repeats = canaries.noise is None
        readings = await pool.call_member(member, "canary", self._texts[model], repeats)
        asked = Asked(member.number, member.place, pool.newest)
        verdict = canaries.judge(asked, version, occasion, readings)
        if verdict.wrong:
            await self._act(pool, member, verdict)

    async def woken(self, pool: Pool, member: PoolMember) -> None:
        """A member is awake again. Raises TeacherWrong."""
        await self.check(pool, member, member.version, Occasion.WAKE)

    async def alarm(self, model: str, why: str) -> bool:
        """Scores of a model that cannot be right: look at all of its members at once. Whether one was wrong. Raises
        TeacherWrong."""
        pool = self._pools.scorers[model]
        if model not in self._alarmed:
            self._alarmed.add(model)
            self._notice(
                f"scores of {model} are suspicious: {why}; its members are checked, here and whenever it comes"
            )
        before = pool.restarts
        async with self._looking[model]:
            looks = (self._look(pool, member) for member in pool.serving())
            return any(await asyncio.gather(*looks)) or pool.restarts > before

    async def _look(self, pool: Pool, member: PoolMember) -> bool:
        """Whether a member is wrong, or gone."""
        try:
            await self.check(pool, member, member.version, Occasion.ALARM)
        except MemberDied:
            return True
        return False

    async def _act(self, pool: Pool, member: PoolMember, verdict: Verdict) -> None:
        if verdict.final:
            failure = TeacherWrong(
                f"{pool.role}-{member.number}: {verdict.why}, as it was with the member before it; "
                f"are the model's files whole and alike on every node?"
            )
            await pool.fail(failure)
            raise failure
        death = MemberDied(f"{pool.role}-{member.number}: {verdict.why}")
        for other in [m for m in pool.members if m.number in verdict.wrong]:
            if other.serving:
                pool.replace(other, death)
            elif other is not member:  # it joins, and is found dead
                await pool.transport.kill(other.actors)
        if member.number in verdict.wrong:
            raise death
