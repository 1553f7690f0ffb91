"""The learner as the orchestrator sees it: one member of several ranks, which are called together.

Every rank fetches its payloads before a collective begins, so that a lost payload is reported before any rank waits for
another. The death of one rank is the death of the learner, and so is a fault of its device.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from actors.address import LOOPBACK
from actors.micro_batches import Plan, SampleSize, plan
from actors.wire.jobs import LearnerSpec, Share, Total
from configs.objective import Objective
from configs.schema import Recipe
from objectives.schedule import Dials
from orchestrator.pools.member import PoolMember, quoted
from orchestrator.pools.pool import Pool
from orchestrator.pools.sick import remedy
from orchestrator.pools.startup import RoleFailed
from orchestrator.pools.transport import MemberDied, MemberSick, ValueLost
from orchestrator.samples import credit
from orchestrator.samples.buffer import Scored
from orchestrator.weights.rank_answers import together
from orchestrator.weights.turns import Colocated, OwnGpus, Turns

MIB = 2**20


class LearnerDied(RoleFailed):
    """A rank is dead or hangs. What the learner has not saved is lost."""


class PayloadsLost(Exception):
    """Payloads of a batch were lost with a node before the learner fetched them. No rank has begun the step."""

    def __init__(self, uids: frozenset[str]) -> None:
        super().__init__(f"the payloads of {len(uids)} samples are lost: {', '.join(sorted(uids)[:3])}")
        self.uids = uids


class LearnerGroup:
    """Plans a batch from headers and gives every rank references to its own part. `engines`: pools on the same GPUs.

    Weights change, and are published, only inside of `turns.learner()`. The first call that finds the learner dead sets
    `died` and `death`; `forget` resets them.
    """

    def __init__(self, recipe: Recipe, pool: Pool, engines: Sequence[Pool] = ()) -> None:
        self._recipe = recipe
        self._pool = pool
        self._asleep: PoolMember | None = None
        self.turns: Turns = Colocated(self, engines) if engines else OwnGpus()
        self.died = asyncio.Event()
        self.death: LearnerDied | None = None

    async def start(self, spec: LearnerSpec) -> None:
        """Connect the ranks and build their engine."""
        meeting = meeting_of(await self._together("address", lambda rank: ()))
        await self._together("start", lambda rank: (spec, meeting))

    def forget(self) -> None:
        """Reset after a death. Its traceback would keep payloads in flight alive."""
        self.death = None
        self.died.clear()

    async def load_projection(self, model: str, version: int, oldest: int, ref: Any) -> None:
        """Give every rank a model's LM head at a version; heads before version `oldest` are dropped."""
        await self._together("load_projection", lambda rank: (model, version, oldest, ref))

    async def step(
        self, batch: Sequence[Scored], step: int, version: int, dials: Dials, record: Path | None, oldest: int = 0
    ) -> dict[str, Any]:
        """Train one batch; returns the objective's global metrics. Tokens of versions below `oldest` carry no loss.

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
        self,
        batch: Sequence[Scored],
        version: int,
        dials: Dials,
        record: Path | None,
        objective: Objective | None = None,
        start_kl: bool = True,
    ) -> dict[str, Any]:
        """The same metrics without an update; `each`: uid -> values of a sample. `objective`, `start_kl`: what the
        samples are read by, if not by the run's own; see Share. Raises PayloadsLost, LearnerDied."""
        shares = self._shares(batch, 0, version, dials, record, 0, objective, start_kl)
        await self._fetch(batch, shares)
        found = await self._together("evaluate", lambda rank: (shares[rank].share,))
        return found[0] | {"each": {uid: sums for part in found for uid, sums in part["each"].items()}}

    async def movement(self) -> dict[str, float]:
        """How far the weights are from the files that training began with: `weights_changed`, `weights_distance`."""
        return (await self._together("movement", lambda rank: ()))[0]

    async def publish(self, model: str | None = None) -> tuple[list[Any], list[Any]]:
        """Gather the student's weights, or those of its average `model`, on all ranks. Returns the headers of the
        buckets and references to them, from rank 0."""
        async with self._alive("publish") as member:
            try:
                with self._pool.clock.busy(member.number):  # gathering under ZeRO-3 needs all ranks
                    pairs, *_ = await together([self._published(actor, model) for actor in member.actors])
                return [header for _, header in pairs], [bucket for bucket, _ in pairs]
            except ValueLost as loss:
                raise MemberDied(str(loss)) from loss

    async def sleep(self) -> None:
        """Free the memory of the GPUs. Raises LearnerDied."""
        await self._together("sleep", lambda rank: ())
        self._asleep = self.member

    async def wake(self) -> None:
        """Undo `sleep`. Does nothing for ranks that are awake or not started. Raises LearnerDied."""
        if self._asleep in self._pool.members:
            await self._together("wake", lambda rank: ())
        self._asleep = None

    async def take_part(self, method: str, *arguments: Any) -> list[Any]:
        """Call all ranks together for a carrier: the learner's end of a transfer. Object store and directories need no
        such call; a carrier from GPU to GPU (`transfer/`) does. Raises LearnerDied."""
        return await self._together(method, lambda rank: arguments)

    @property
    def node(self) -> str | None:
        """The node of rank 0; None if unknown. Raises LearnerDied during a rebuild."""
        return self._pool.transport.node(self.member.lead)

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
        step: int,
        version: int,
        dials: Dials,
        record: Path | None,
        oldest: int,
        objective: Objective | None = None,
        start_kl: bool = True,
    ) -> list[RankShare]:
        recipe, outcome, layout = self._recipe, self._recipe.objective.outcome, plan_batch(self._recipe, batch)
        cut = {s.header.uid for s in batch if outcome.truncated == "mask" and s.header.finish == "length"}
        whole = Share(
            step=step,
            version=version,
            micro_batches=(),
            loss_tokens=layout.loss_tokens,
            totals=term_totals((objective or recipe.objective).terms, batch),
            constant=recipe.samples_per_step * recipe.sampling.max_response_tokens,
            dials=dials,
            oldest=oldest,
            record=str(record) if record else None,
            kept_scores=recipe.record.scores_mib * MIB // recipe.learner.ranks if step else 0,
            objective=objective,
            start_kl=start_kl,
        )
        return [share_of_rank(whole, batch, uids, cut) for uids in layout.ranks]

    async def _fetch(self, batch: Sequence[Scored], shares: Sequence[RankShare]) -> None:
        """Let every rank fetch its payloads. Raises PayloadsLost."""
        try:
            await self._together("fetch", lambda rank: shares[rank].payloads)
        except ValueLost:
            lost = await self._lost(shares)
            uids = {s.header.uid for s in batch if lost & {id(ref) for ref in _payloads(s)}}
            raise PayloadsLost(frozenset(uids)) from None

    async def _lost(self, shares: Sequence[RankShare]) -> set[int]:
        """The ids of lost payloads: each is fetched on a rank that needs it. All, if every single fetch succeeds: the
        batch as a whole did not."""
        needed = {id(ref): (rank, ref) for rank, share in enumerate(shares) for ref in share.payloads}

        async def gone(actor: Any, ref: Any) -> bool:
            try:
                await self._ask(actor, "fetch", ref)
            except ValueLost:
                return True
            return False

        async with self._alive("fetch") as member:
            found = await asyncio.gather(*(gone(member.actors[rank], ref) for rank, ref in needed.values()))
        return {key for key, is_gone in zip(needed, found, strict=True) if is_gone} or set(needed)

    async def _together(self, method: str, arguments: Callable[[int], Sequence[Any]]) -> list[Any]:
        """Call a method of every rank with the arguments of its rank; returns the answers in the order of the ranks."""
        async with self._alive(method) as member:
            with self._pool.clock.busy(member.number):
                calls = [self._ask(actor, method, *arguments(rank)) for rank, actor in enumerate(member.actors)]
                return await together(calls)

    async def _published(self, actor: Any, model: str | None) -> list[tuple[Any, Any]]:
        stream = aiter(self._pool.transport.stream(actor, "publish", model))
        pairs: list[tuple[Any, Any]] = []
        while (pair := await self._pool.watch.in_time("publish", anext(stream, None))) is not None:
            pairs.append(pair)
        return pairs

    async def _ask(self, actor: Any, method: str, *arguments: Any) -> Any:
        """One rank's answer, within the method's deadline."""
        (answer,) = self._pool.transport.call(actor, method, *arguments)
        return await self._pool.watch.in_time(method, self._pool.transport.value(answer))

    @property
    def member(self) -> PoolMember:
        """The current ranks; a rebuild makes others. Raises LearnerDied during a rebuild."""
        if not self._pool.members:
            raise LearnerDied("the learner is gone, and is being rebuilt")
        return self._pool.members[0]

    @asynccontextmanager
    async def _alive(self, method: str) -> AsyncIterator[PoolMember]:
        """The ranks, for one call. Raises LearnerDied for the death of a rank; notes it unless they were discarded."""
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
    items = [
        SampleSize(s.header.uid, s.header.prompt_tokens + s.header.response_tokens, s.header.loss_tokens) for s in batch
    ]
    return plan(items, recipe.learner.ranks, recipe.batch.tokens_per_microbatch)


def term_totals(terms: Sequence[str], batch: Sequence[Scored]) -> dict[str, Total]:
    """Global denominators by term: distillation counts every response, other terms those of the student. Tokens masked
    for their age count too, so that a mask never rescales the rest."""
    found: dict[str, Total] = {}
    for term in terms:
        mine = [s.given_tokens for s in batch if term == "distillation" or s.source == "student"]
        found[term] = Total(sum(mine), sum(tokens > 0 for tokens in mine))
    return found


class RankShare(NamedTuple):
    """The share of one rank, and references to the payloads of its samples and scores, each once."""

    share: Share
    payloads: tuple[Any, ...]


def share_of_rank(
    whole: Share,
    batch: Sequence[Scored],
    micro_batches: tuple[tuple[str, ...], ...],
    cut: set[str],
) -> RankShare:
    """One rank's part of a batch. Responses are located by payload and uid: another payload of the batch may hold the
    same uid, of an earlier attempt."""
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
        components={s.header.uid: s.components for s in entries if s.components},
        foreign=frozenset(s.header.uid for s in entries if s.source != "student"),
        masked=frozenset(cut & mine),
        base_prompts=_base_prompts(entries),
    )
    return RankShare(share, tuple(payloads.values()))


def _base_prompts(entries: Sequence[Scored]) -> dict[str, dict[str, Sequence[int]]]:
    """By model and uid, as in Share."""
    models = dict.fromkeys(model for scored in entries for model in scored.base_prompts)
    return {model: {s.header.uid: s.base_prompts[model] for s in entries} for model in models}


def _credited(share: Share, advantages: Mapping[str, float]) -> Share:
    """A rank's share with the advantages of its own samples."""
    mine = {uid for uids in share.micro_batches for uid in uids}
    return replace(share, advantages={uid: value for uid, value in advantages.items() if uid in mine})


def _payloads(scored: Scored) -> list[Any]:
    return [scored.samples, *(ref for refs in scored.scores.values() for ref in refs)]


def meeting_of(addresses: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """Where ranks at these addresses meet: at rank 0's; on loopback if all are on its machine. Nothing guards it."""
    host, port = addresses[0]
    return (LOOPBACK if {other for other, _ in addresses} == {host} else host), port
