"""The learner as the orchestrator sees it: one member of several ranks, called together with their shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.jobs import LearnerSpec, Share
from actors.packing import Item, Plan, plan
from configs.schema import Recipe
from objectives.advantage import group_advantages
from orchestrator.buffer import Scored
from orchestrator.pool import Pool, RoleFailed, quote_log
from orchestrator.transport import MemberDied
from orchestrator.versions import Version


class LearnerGroup:
    """Plans a batch from headers alone and hands every rank references to its own part."""

    def __init__(self, recipe: Recipe, pool: Pool) -> None:
        self._recipe = recipe
        self._pool = pool

    async def start(self, spec: LearnerSpec) -> None:
        """Let the ranks meet and build their engine."""
        meeting = await self._value(self._call(0, "address"))
        await self._together("start", lambda rank: (spec, meeting))

    async def load_projection(self, ref: Any) -> None:
        await self._together("load_projection", lambda rank: (ref,))

    async def step(self, batch: Sequence[Scored], step: int, version: int, record: Path | None) -> dict[str, Any]:
        """One update on `batch`; global metrics of the objective."""
        return await self._train("step", batch, step, version, record)

    async def evaluate(self, batch: Sequence[Scored], version: int, record: Path | None) -> dict[str, Any]:
        """The same readings without an update."""
        return await self._train("evaluate", batch, 0, version, record)

    async def publish(self, number: int) -> Version:
        """All ranks gather, rank 0 yields: buckets stay references, headers are opened."""
        others = [
            asyncio.ensure_future(self._drain(actor)) for actor in self._member.actors[1:]
        ]  # under ZeRO-3 they must take part
        refs: list[Any] = []
        try:
            async for ref in self._pool.transport.stream(self._member.head, "publish"):
                refs.append(ref)
        except MemberDied as death:
            raise self._failed("publish", death) from death
        await asyncio.gather(*others)
        headers = [await self._value(ref) for ref in refs[1::2]]
        return Version(number, tuple(headers), tuple(refs[0::2]))

    async def save(self, directory: Path) -> None:
        await self._together("save", lambda rank: (str(directory),))

    async def restore(self, directory: Path) -> None:
        await self._together("restore", lambda rank: (str(directory),))

    async def export(self, directory: Path) -> None:
        await self._together("export", lambda rank: (str(directory),))

    async def _train(
        self, method: str, batch: Sequence[Scored], step: int, version: int, record: Path | None
    ) -> dict[str, Any]:
        layout = plan_batch(self._recipe, batch)
        shares = [
            _share(self._recipe, batch, layout, rank, step, version, record)
            for rank in range(self._recipe.learner.ranks)
        ]
        results = await self._together(method, lambda rank: shares[rank])
        return results[0]

    async def _together(self, method: str, arguments: Callable[[int], Sequence[Any]]) -> list[Any]:
        calls = [self._call(rank, method, *arguments(rank)) for rank in range(len(self._member.actors))]
        values = [asyncio.ensure_future(self._value(call)) for call in calls]
        try:
            return list(await asyncio.gather(*values))
        except MemberDied as death:
            raise self._failed(method, death) from death
        finally:
            for value in values:
                value.cancel()

    async def _drain(self, actor: Any) -> None:
        async for _ in self._pool.transport.stream(actor, "publish"):
            pass

    def _call(self, rank: int, method: str, *arguments: Any) -> Any:
        return self._pool.transport.call(self._member.actors[rank], method, *arguments)[0]

    async def _value(self, ref: Any) -> Any:
        return await self._pool.transport.value(ref)

    @property
    def _member(self) -> Any:
        return self._pool.members[0]

    def _failed(self, method: str, death: Exception) -> RoleFailed:
        return RoleFailed(f"learner died in {method}: {death}{quote_log(self._member.log)}")


def plan_batch(recipe: Recipe, batch: Sequence[Scored]) -> Plan:
    """Micro-batches of a batch, from headers alone."""
    items = [Item(s.header.uid, s.header.prompt_tokens + s.header.response_tokens, s.header.loss_tokens) for s in batch]
    return plan(items, recipe.learner.ranks, recipe.batch.tokens_per_microbatch)


def _share(
    recipe: Recipe, batch: Sequence[Scored], layout: Plan, rank: int, step: int, version: int, record: Path | None
) -> tuple[Any, ...]:
    """A rank's Share and, after it, references to the payloads that hold its samples, each once."""
    mine = {uid for uids in layout.ranks[rank] for uid in uids}
    entries = [scored for scored in batch if scored.header.uid in mine]
    samples = _unique(scored.samples for scored in entries)
    scores = _unique(scored.scores for scored in entries if scored.scores is not None)
    rewards = {s.header.uid: s.reward for s in entries if s.reward is not None}
    share = Share(
        step=step,
        version=version,
        micro_batches=layout.ranks[rank],
        loss_tokens=layout.loss_tokens,
        sequences=layout.sequences,
        sample_blocks=len(samples),
        advantages=_advantages(recipe, batch, mine),
        rewards=rewards,
        record=str(record) if record else None,
    )
    return share, *samples, *scores


def _advantages(recipe: Recipe, batch: Sequence[Scored], mine: set[str]) -> dict[str, float]:
    if not recipe.objective.outcome.weight:
        return {}
    rewards = [scored.reward or 0.0 for scored in batch]
    groups = [scored.header.group for scored in batch]
    values = group_advantages(rewards, groups, recipe.objective.outcome.baseline)
    return {s.header.uid: value for s, value in zip(batch, values, strict=True) if s.header.uid in mine}


def _unique(refs: Any) -> list[Any]:
    return list({id(ref): ref for ref in refs}.values())
