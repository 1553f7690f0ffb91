"""The learner as the orchestrator sees it: one member of several ranks, called together with their shares.

Ranks first fetch their payloads, and only when all have them does a collective begin: a value that is lost on the way
is said before anybody waits for anybody. The death of one rank is the learner's, and so is a fault of its device.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from actors.packing import Item, Plan, plan
from actors.wire.jobs import LearnerSpec, Share, Total
from configs.schema import Recipe
from objectives.schedule import Dials
from orchestrator.pools.pool import Pool, PoolMember, RoleFailed, quoted
from orchestrator.pools.sick import remedy
from orchestrator.pools.transport import MemberDied, MemberSick, ValueLost
from orchestrator.samples import credit
from orchestrator.samples.buffer import Scored
from orchestrator.weights.together import together
from orchestrator.weights.turns import Apart, Colocated, Turns


class LearnerDied(RoleFailed):
    """A rank is gone, or hangs; with it all that the learner has not saved."""


class PayloadsLost(Exception):
    """Payloads of a batch went down with a node before the learner had them. No rank has begun."""

    def __init__(self, uids: frozenset[str]) -> None:
        super().__init__(f"the payloads of {len(uids)} samples are lost: {', '.join(sorted(uids)[:3])}")
        self.uids = uids


class LearnerGroup:
    """Plans a batch from headers alone and hands every rank references to its own part. `engines` are the pools that
    share its GPUs.

    Whose turn it is may count on the weights: they move, and are published, only in `turns.learner()`. `died` is set
    when a call finds it dead, whoever made it, and `death` is what it found, until `forget`.
    """

    def __init__(self, recipe: Recipe, pool: Pool, engines: Sequence[Pool] = ()) -> None:
        self._recipe = recipe
        self._pool = pool
        self._asleep: PoolMember | None = None
        self.turns: Turns = Colocated(self, engines) if engines else Apart()
        self.died = asyncio.Event()
        self.death: LearnerDied | None = None

    async def start(self, spec: LearnerSpec) -> None:
        """Let the ranks meet and build their engine."""
        (meeting, *_) = await self._together("address", lambda rank: ())
        await self._together("start", lambda rank: (spec, meeting))

    def forget(self) -> None:
        """Another is to be built. The death of this one would hold what was on the way to it."""
        self.death = None
        self.died.clear()

    async def load_projection(self, model: str, version: int, oldest: int, ref: Any) -> None:
        """Give every rank a model's head at a version; heads before `oldest` are let go."""
        await self._together("load_projection", lambda rank: (model, version, oldest, ref))

    async def step(
        self, batch: Sequence[Scored], step: int, version: int, dials: Dials, record: Path | None, oldest: int = 0
    ) -> dict[str, Any]:
        """One batch; global metrics of the objective. Tokens of versions below `oldest` carry no loss.

        Raises PayloadsLost before the step has begun, and LearnerDied.
        """
        shares = self._shares(batch, step, version, dials, record, oldest)
        await self._fetch(batch, shares)
        reference = self._recipe.objective.reference
        sums: dict[str, float] = {}
        if reference and reference.placement == "reward_sum":  # a group's baseline needs every rank's responses
            for part in await self._together("reference_sums", lambda rank: (shares[rank].share,)):
                sums |= part
        advantages = self._credit(batch, dials, sums)
        return (await self._together("step", lambda rank: (_credited(shares[rank].share, advantages),)))[0]

    async def evaluate(
        self, batch: Sequence[Scored], version: int, dials: Dials, record: Path | None
    ) -> dict[str, Any]:
        """The same readings without an update and, as `each`, those of every sample by uid. Raises PayloadsLost,
        LearnerDied."""
        shares = self._shares(batch, 0, version, dials, record, 0)
        await self._fetch(batch, shares)
        found = await self._together("evaluate", lambda rank: (shares[rank].share,))
        return found[0] | {"each": {uid: sums for part in found for uid, sums in part["each"].items()}}

    async def publish(self, model: str | None = None) -> tuple[list[Any], list[Any]]:
        """The student, or one of its averages, as (headers, references to their buckets). All ranks gather, rank 0
        yields: buckets stay references, headers are opened."""
        async with self._alive("publish") as member:
            try:
                with self._pool.clock.busy(member.number):  # under ZeRO-3 all must take part
                    pairs, *_ = await together([self._published(actor, model) for actor in member.actors])
                return [header for _, header in pairs], [bucket for bucket, _ in pairs]
            except ValueLost as loss:
                raise MemberDied(str(loss)) from loss

    async def sleep(self) -> None:
        """Give the memory of the GPUs back. Raises LearnerDied."""
        await self._together("sleep", lambda rank: ())
        self._asleep = self.member

    async def wake(self) -> None:
        """Undo `sleep`; nothing for ranks that do not sleep, or that are still to be started. Raises LearnerDied."""
        if self._asleep in self._pool.members:
            await self._together("wake", lambda rank: ())
        self._asleep = None

    async def take_part(self, method: str, *arguments: Any) -> list[Any]:
        """Call all ranks together for a carrier: the learner's end of a transfer. Object store and directories need no
        such call; a carrier that sends from rank to member (NCCL, CUDA IPC) does. Raises LearnerDied."""
        return await self._together(method, lambda rank: arguments)

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
        self, batch: Sequence[Scored], step: int, version: int, dials: Dials, record: Path | None, oldest: int
    ) -> list[RankShare]:
        recipe, outcome, layout = self._recipe, self._recipe.objective.outcome, plan_batch(self._recipe, batch)
        cut = {s.header.uid for s in batch if outcome.truncated == "mask" and s.header.finish == "length"}
        whole = Share(
            step=step,
            version=version,
            micro_batches=(),
            loss_tokens=layout.loss_tokens,
            totals=term_totals(recipe.objective.terms, batch),
            constant=recipe.samples_per_step * recipe.sampling.max_response_tokens,
            dials=dials,
            oldest=oldest,
            record=str(record) if record else None,
        )
        return [share_of_rank(whole, batch, uids, cut) for uids in layout.ranks]

    async def _fetch(self, batch: Sequence[Scored], shares: Sequence[RankShare]) -> None:
        """Bring every rank its payloads."""
        try:
            await self._together("fetch", lambda rank: shares[rank].payloads)
        except ValueLost:
            lost = await self._lost(shares)
            uids = {s.header.uid for s in batch if lost & {id(ref) for ref in _payloads(s)}}
            raise PayloadsLost(frozenset(uids)) from None

    async def _lost(self, shares: Sequence[RankShare]) -> set[int]:
        """Which payloads, by id, lead nowhere, each asked of a rank that needs it. All, where each can be had by
        itself: a batch that never comes whole is as good as lost."""
        needed = {id(ref): (rank, ref) for rank, share in enumerate(shares) for ref in share.payloads}

        async def gone(rank: int, ref: Any) -> bool:
            try:
                await self._value("fetch", self._call(rank, "fetch", ref))
            except ValueLost:
                return True
            return False

        async with self._alive("fetch"):
            found = await asyncio.gather(*(gone(*place) for place in needed.values()))
        return {key for key, is_gone in zip(needed, found, strict=True) if is_gone} or set(needed)

    async def _together(self, method: str, arguments: Callable[[int], Sequence[Any]]) -> list[Any]:
        async with self._alive(method) as member:
            calls = [self._call(rank, method, *arguments(rank)) for rank in range(len(member.actors))]
            with self._pool.clock.busy(member.number):
                return await together([self._value(method, call) for call in calls])

    async def _published(self, actor: Any, model: str | None) -> list[tuple[Any, Any]]:
        stream = aiter(self._pool.transport.stream(actor, "publish", model))
        pairs: list[tuple[Any, Any]] = []
        while (pair := await self._pool.in_time("publish", anext(stream, None))) is not None:
            pairs.append(pair)
        return pairs

    def _call(self, rank: int, method: str, *arguments: Any) -> Any:
        return self._pool.transport.call(self.member.actors[rank], method, *arguments)[0]

    async def _value(self, method: str, ref: Any) -> Any:
        return await self._pool.in_time(method, self._pool.transport.value(ref))

    @property
    def member(self) -> PoolMember:
        """The ranks there are now; others after a rebuild. Raises LearnerDied in between."""
        if not self._pool.members:
            raise LearnerDied("the learner is gone, and is being built anew")
        return self._pool.members[0]

    @asynccontextmanager
    async def _alive(self, method: str) -> AsyncIterator[PoolMember]:
        """The ranks that a call is made to: the death of one is the learner's, unless all were given up meanwhile."""
        member = self.member
        try:
            yield member
        except MemberDied as cause:
            short = isinstance(cause, MemberSick) and cause.fault == "memory"
            what = f"{cause}; {remedy('learner')}" if short else str(cause)
            death = LearnerDied(f"learner died in {method}: {what}{await quoted(member.log)}")
            if member in self._pool.members:
                self.death = death
                self.died.set()
            raise death from cause


def plan_batch(recipe: Recipe, batch: Sequence[Scored]) -> Plan:
    """Micro-batches of a batch, from headers alone."""
    items = [Item(s.header.uid, s.header.prompt_tokens + s.header.response_tokens, s.header.loss_tokens) for s in batch]
    return plan(items, recipe.learner.ranks, recipe.batch.tokens_per_microbatch)


def term_totals(terms: Sequence[str], batch: Sequence[Scored]) -> dict[str, Total]:
    """Global denominators: distillation counts every response, the other terms those that the student drew. Tokens
    that lose their loss for their age are counted: a mask never re-scales the rest."""
    found: dict[str, Total] = {}
    for term in terms:
        mine = [s.given_tokens for s in batch if term == "distillation" or s.source == "student"]
        found[term] = Total(sum(mine), sum(tokens > 0 for tokens in mine))
    return found


class RankShare(NamedTuple):
    """What one rank is to do, and references to the payloads that hold its samples and their scores, each once."""

    share: Share
    payloads: tuple[Any, ...]


def share_of_rank(
    whole: Share,
    batch: Sequence[Scored],
    micro_batches: tuple[tuple[str, ...], ...],
    cut: set[str],
) -> RankShare:
    """One rank's part of a batch. Each response is told by the payloads that were admitted with it: blocks of other
    responses of the batch may hold its uid too, of an attempt that was given up."""
    mine = {uid for uids in micro_batches for uid in uids}
    entries = [scored for scored in batch if scored.header.uid in mine]
    payloads = {id(ref): ref for scored in entries for ref in _payloads(scored)}
    place = {key: index for index, key in enumerate(payloads)}
    share = replace(
        whole,
        micro_batches=micro_batches,
        rows={s.header.uid: place[id(s.samples)] for s in entries},
        scores={
            s.header.uid: {model: tuple(place[id(ref)] for ref in refs) for model, refs in s.scores.items()}
            for s in entries
        },
        rewards={s.header.uid: s.reward for s in entries if s.reward is not None},
        foreign=frozenset(s.header.uid for s in entries if s.source != "student"),
        masked=frozenset(cut & mine),
    )
    return RankShare(share, tuple(payloads.values()))


def _credited(share: Share, advantages: Mapping[str, float]) -> Share:
    """A rank's share with the advantages of its own samples."""
    mine = {uid for uids in share.micro_batches for uid in uids}
    return replace(share, advantages={uid: value for uid, value in advantages.items() if uid in mine})


def _payloads(scored: Scored) -> list[Any]:
    return [scored.samples, *(ref for refs in scored.scores.values() for ref in refs)]
