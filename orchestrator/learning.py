"""The learner as the orchestrator sees it: one member of several ranks, called together with their shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.jobs import LearnerSpec, Share, Total
from actors.packing import Item, Plan, plan
from configs.schema import Recipe
from objectives.schedule import Dials
from orchestrator import credit
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

    async def load_projection(self, model: str, version: int, oldest: int, ref: Any) -> None:
        """Give every rank a model's head at a version; heads before `oldest` are let go."""
        await self._together("load_projection", lambda rank: (model, version, oldest, ref))

    async def step(
        self, batch: Sequence[Scored], step: int, version: int, dials: Dials, record: Path | None
    ) -> dict[str, Any]:
        """One batch; global metrics of the objective."""
        layout = plan_batch(self._recipe, batch)
        reference = self._recipe.objective.reference
        sums: dict[str, float] = {}
        if reference and reference.placement == "reward_sum":  # a group's baseline needs every rank's responses
            shares = self._shares(batch, layout, step, version, dials, None, {})
            for part in await self._together("reference_sums", lambda rank: shares[rank]):
                sums |= part
        shares = self._shares(batch, layout, step, version, dials, record, self._credit(batch, dials, sums))
        return (await self._together("step", lambda rank: shares[rank]))[0]

    async def evaluate(
        self, batch: Sequence[Scored], version: int, dials: Dials, record: Path | None
    ) -> dict[str, Any]:
        """The same readings without an update."""
        shares = self._shares(batch, plan_batch(self._recipe, batch), 0, version, dials, record, {})
        return (await self._together("evaluate", lambda rank: shares[rank]))[0]

    async def publish(self, number: int, model: str | None = None) -> Version:
        """The student, or one of its averages. All ranks gather, rank 0 yields: buckets stay references, headers are
        opened."""
        others = [
            asyncio.ensure_future(self._drain(actor, model)) for actor in self._member.actors[1:]
        ]  # under ZeRO-3 they must take part
        refs: list[Any] = []
        try:
            async for ref in self._pool.transport.stream(self._member.head, "publish", model):
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

    def _credit(self, batch: Sequence[Scored], dials: Dials, sums: Mapping[str, float]) -> dict[str, float]:
        if not self._recipe.objective.needs_advantages:
            return {}
        shaped = credit.shaped_rewards(self._recipe, batch, dials.beta, sums)
        return credit.advantages(self._recipe, shaped, {s.header.uid: s.header.group for s in batch})

    def _shares(
        self,
        batch: Sequence[Scored],
        layout: Plan,
        step: int,
        version: int,
        dials: Dials,
        record: Path | None,
        advantages: Mapping[str, float],
    ) -> list[tuple[Any, ...]]:
        """For each rank its Share and, after it, references to the payloads that hold its samples, each once."""
        recipe, outcome = self._recipe, self._recipe.objective.outcome
        cut = {s.header.uid for s in batch if outcome.truncated == "mask" and s.header.finish == "length"}
        whole = Share(
            step=step,
            version=version,
            micro_batches=(),
            loss_tokens=layout.loss_tokens,
            totals=term_totals(recipe.objective.terms, batch),
            constant=recipe.samples_per_step * recipe.sampling.max_response_tokens,
            dials=dials,
            sample_blocks=0,
            record=str(record) if record else None,
        )
        return [_of_rank(whole, batch, uids, advantages, cut) for uids in layout.ranks]

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

    async def _drain(self, actor: Any, model: str | None) -> None:
        async for _ in self._pool.transport.stream(actor, "publish", model):
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


def term_totals(terms: Sequence[str], batch: Sequence[Scored]) -> dict[str, Total]:
    """Global denominators: distillation counts every response, the other terms those that the student drew."""
    found: dict[str, Total] = {}
    for term in terms:
        mine = [s.header for s in batch if term == "distillation" or s.source == "student"]
        found[term] = Total(sum(h.loss_tokens for h in mine), sum(h.loss_tokens > 0 for h in mine))
    return found


def _of_rank(
    whole: Share,
    batch: Sequence[Scored],
    micro_batches: tuple[tuple[str, ...], ...],
    advantages: Mapping[str, float],
    cut: set[str],
) -> tuple[Any, ...]:
    mine = {uid for uids in micro_batches for uid in uids}
    entries = [scored for scored in batch if scored.header.uid in mine]
    samples = _unique(scored.samples for scored in entries)
    scores = {(model, id(ref)): ref for scored in entries for model, ref in scored.scores.items()}
    share = replace(
        whole,
        micro_batches=micro_batches,
        sample_blocks=len(samples),
        scored_by=tuple(model for model, _ in scores),
        advantages={uid: value for uid, value in advantages.items() if uid in mine},
        rewards={s.header.uid: s.reward for s in entries if s.reward is not None},
        foreign=frozenset(s.header.uid for s in entries if s.source != "student"),
        masked=frozenset(cut & mine),
    )
    return share, *samples, *scores.values()


def _unique(refs: Any) -> list[Any]:
    return list({id(ref): ref for ref in refs}.values())
