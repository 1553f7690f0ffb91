"""The way of a sample from a rollout member to the buffer: sampled in blocks, scored and rewarded at once.

Only headers are opened here. A block's payload goes by reference to a scorer of each model and to a reward worker, in
parallel, the moment it exists.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar

from actors.wire.records import BlockHeader, Request, SampleHeader, ScoreHeader, ScoreRequest
from configs.node import START
from configs.objective import Route
from configs.schema import Recipe, Sampling
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import CallFailed, Patience, Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.telemetry import Meter
from orchestrator.samples.buffer import Scored
from orchestrator.samples.dispatch import Ticket
from orchestrator.samples.prompts import Prompt


@dataclass(frozen=True)
class Block:
    """A reference to a payload of samples, the headers of those that are wanted of it, and who wrote them: a source,
    and the number of its member; of segments, which channel they came in, and by uid the `earlier` payloads of
    responses that go on."""

    payload: Any
    samples: tuple[SampleHeader, ...]
    source: str = "student"
    member: int = 0
    channel: str = ""
    earlier: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


class Flow:
    """`end_token_ids` end a response; `segment_tokens` hands responses on in segments, 0 whole."""

    def __init__(
        self, recipe: Recipe, pools: Pools, meter: Meter, end_token_ids: Sequence[int], segment_tokens: int = 0
    ) -> None:
        self._recipe = recipe
        self._pools = pools
        self._meter = meter
        self._end_token_ids = tuple(end_token_ids)
        self._segment_tokens = segment_tokens
        self.alarm: Callable[[str, str], Awaitable[bool]] = _unheard

    async def submit(
        self,
        pool: Pool,
        member: PoolMember,
        channel: str,
        tickets: Sequence[tuple[Ticket, Prompt]],
        source: str,
        sampling: Sampling,
    ) -> None:
        """Let a member begin to write; what comes of it is in the channel's blocks. Raises MemberDied."""
        requests = [self._request(ticket, prompt, source) for ticket, prompt in tickets]
        await pool.call_member(member, "submit", channel, requests, sampling, self._end_token_ids)

    async def blocks(
        self, pool: Pool, member: PoolMember, channel: str, source: str, since: Callable[[], float | None]
    ) -> AsyncIterator[Block]:
        """Blocks of all that is submitted to a member's channel, for as long as it lives; `since` as in Pool.stream.
        Raises MemberDied after the blocks that were yielded."""
        stream = pool.stream(member, "blocks", channel, self._recipe.stream, since=since)
        async for block in self._blocks(member, stream, source, channel):
            yield block

    async def _blocks(
        self, member: PoolMember, stream: AsyncIterator[Any], source: str, channel: str = ""
    ) -> AsyncIterator[Block]:
        header: BlockHeader
        async for payload, header in stream:
            self._meter.count("tokens_generated", sum(s.response_tokens for s in header.samples))
            self._meter.payload(header.payload_bytes)
            yield Block(payload, header.samples, source, member.number, channel)

    async def score_and_reward(
        self, block: Block, prompts: Mapping[str, Prompt]
    ) -> tuple[list[Scored], dict[str, str]]:
        """Score and, where a response has ended, reward what a block holds: (scored samples or segments, reasons of
        those that cannot be trained). Raises ValueLost."""
        models = self._recipe.scored_models
        scoring = (self._score(block, prompts, model) for model in models)
        answered: list[Any] = await asyncio.gather(*scoring, self._reward(block, prompts))
        *scored, (rewards, rejected) = answered
        rejected |= {s.uid: "no token carries loss" for s in block.samples if not s.loss_tokens}
        drawn = [s for s in block.samples if block.source == "student"]
        rejected |= {s.uid: "the sampler's log-probs are not finite" for s in drawn if not s.finite}
        rejected |= {uid: f"its reward is {reward}" for uid, reward in rewards.items() if not math.isfinite(reward)}
        scores: dict[str, dict[str, tuple[Any, ...]]] = {s.uid: {} for s in block.samples}
        entropies: dict[str, list[float]] = {s.uid: [] for s in block.samples}
        log_ratios: dict[str, float] = {}
        for model, (answers, killers) in zip(models, scored, strict=True):
            rejected |= killers
            for ref, header in answers:
                rejected |= header.rejected
                for uid in header.uids:
                    scores[uid][model] = (ref,)
                if model in self._recipe.objective.teachers:
                    for uid, value in zip(header.uids, header.entropies or (), strict=False):
                        entropies[uid].append(value)
                    log_ratios = dict(zip(header.uids, header.log_ratios or (), strict=False)) | log_ratios
        good = [
            Scored(
                header=header,
                samples=block.payload,
                scores=scores[header.uid],
                reward=rewards.get(header.uid),
                source=block.source,
                teacher_entropy=fmean(entropies[header.uid]) if entropies[header.uid] else None,
                log_ratio=log_ratios.get(header.uid),
            )
            for header in block.samples
            if header.uid not in rejected
        ]
        return good, rejected

    def scorers(self) -> tuple[Pool, ...]:
        """Pools that score."""
        return tuple(self._pools.scorers.values())

    def congested(self) -> bool:
        """Some scorer has more waiting than its members may hold: nothing is leased until it has caught up."""
        return any(
            pool.load() > self._recipe.scorer_of(model).max_queued_tokens * max(1, len(pool.members))
            for model, pool in self._pools.scorers.items()
        )

    def _request(self, ticket: Ticket, prompt: Prompt, source: str) -> Request:
        seed, writer = ticket.seed(self._recipe.run.seed), self._recipe.sampled_teacher
        sampled = prompt.ids[writer] if source == "teacher" and writer else None
        student_support = source == "student" and self._recipe.objective.topk_of != "teacher"
        return Request(
            uid=ticket.uid,
            group=ticket.group,
            attempt=ticket.attempt,
            seed=seed if sampled is None else kept_seed(sampled, ticket.sample, self._recipe.run.seed),
            prompt_ids=prompt.ids["student"],
            response_ids=prompt.response_ids if source == "dataset" else None,
            sampled_prompt_ids=sampled,
            topk=self._recipe.objective.topk if student_support else 0,
            ends=self._recipe.objective.merged_ends(self._end_token_ids) if student_support else (),
            segment_tokens=self._segment_tokens,
        )

    async def _score(
        self, block: Block, prompts: Mapping[str, Prompt], model: str
    ) -> tuple[list[tuple[Any, ScoreHeader]], dict[str, str]]:
        """Scores under one model of those samples that are its own, and reasons of those that kill its members. A
        scorer that does not know how a response began is asked once more, and told."""
        objective, pool = self._recipe.objective, self._pools.scorers[model]
        support = self._recipe.support_of[model]
        mine = [s for s in block.samples if self._scores(prompts[s.uid], model)]
        near = block.member if self._segment_tokens else None  # where the key-values of earlier segments are

        async def asked(request: ScoreRequest, tokens: int, patience: Patience, *earlier: Any) -> Any:
            with self._meter.clock("score").busy():
                return await pool.call(
                    "score", block.payload, request, *earlier, load=tokens, returns=2, near=near, patience=patience
                )

        async def call(samples: Sequence[SampleHeader], patience: Patience, *earlier: Any) -> tuple[Any, ScoreHeader]:
            request = ScoreRequest(
                support=support,
                topk=objective.topk if support == "topk" else 0,
                topk_of=objective.topk_of if block.source == "student" else "teacher",
                prompts={s.uid: prompts[s.uid].ids[model] for s in samples},
                reusable=block.source != "student",
                channel=block.channel,
                ends=objective.merged_ends(self._end_token_ids, model),
            )
            tokens = sum(s.prompt_tokens + s.response_tokens for s in samples)
            ref, header = await asked(request, tokens, patience, *earlier)
            if header.suspicion:
                self._meter.count("scores_suspicious", header.tokens)
                if await self.alarm(model, header.suspicion):  # who gave them is being replaced
                    ref, header = await asked(request, tokens, patience, *earlier)
            self._meter.count("tokens_scored", header.tokens)
            self._meter.count("score_bytes", header.payload_bytes)
            self._meter.count("tails_floored", header.tails_floored)
            self._meter.payload(header.payload_bytes)
            return ref, header

        async def ask(samples: Sequence[SampleHeader], patience: Patience) -> list[tuple[Any, ScoreHeader]]:
            answer = await call(samples, patience)
            if not (unknown := [s for s in samples if s.uid in answer[1].unknown]):
                return [answer]
            earlier = {id(ref): ref for s in unknown for ref in block.earlier[s.uid]}
            return [answer, await call(unknown, patience, *earlier.values())]

        answers, killers = await isolating(ask, mine, pool.alone, f"scorer.{model}")
        return [answer for several in answers for answer in several], killers

    async def _reward(self, block: Block, prompts: Mapping[str, Prompt]) -> tuple[dict[str, float], dict[str, str]]:
        if not self._recipe.reward.earns:
            return {}, {}
        pool, rules = self._pools.reward, self._recipe.reward.rules

        async def ask(samples: Sequence[SampleHeader], patience: Patience) -> Mapping[str, float]:
            fields = {s.uid: prompts[s.uid].row for s in samples}
            with self._meter.clock("reward").busy():
                (rewards,) = await pool.call("reward", block.payload, rules, fields, patience=patience)
            return rewards

        ended = [s for s in block.samples if s.last]
        answers, killers = await isolating(ask, ended, pool.alone, "reward")
        return {uid: reward for rewards in answers for uid, reward in rewards.items()}, killers

    def _scores(self, prompt: Prompt, model: str) -> bool:
        """A routed teacher scores the prompts that name it; every other model scores all."""
        objective = self._recipe.objective
        always = {
            START,
            objective.reference and objective.reference.model,
            objective.extrapolate and objective.extrapolate.base,
        }
        if not isinstance(objective.target, Route) or model in always:
            return True
        return teacher_of(objective.target, prompt.row) == model


async def _unheard(model: str, why: str) -> bool:
    """Nobody looks at a model whose scores are suspicious."""
    return False


Answer = TypeVar("Answer")


async def isolating(
    ask: Callable[[Sequence[SampleHeader], Patience], Awaitable[Answer]],
    samples: Sequence[SampleHeader],
    alone: asyncio.Lock,
    role: str,
) -> tuple[list[Answer], dict[str, str]]:
    """`ask(samples, patience)` for all of a block at once; if a second member dies under it, for halves of it, and for
    halves of those that a member dies under, down to single samples.

    Returns the answers, and the reasons of samples that are to blame: those under which, asked for by themselves, as
    many living members died as make DEATHS. While some are asked for `alone`, no other suspect is.
    """
    if not samples:
        return [], {}
    try:
        return [await ask(samples, "once")], {}
    except CallFailed:  # most members that die have a cause of their own: the samples are held up no longer than needed
        with suppress(CallFailed):
            return [await ask(samples, "once")], {}
    answers: list[Answer] = []
    guilty: dict[str, str] = {}
    left = _halves(samples)
    while left:
        some = left.pop()
        try:
            async with alone:
                answers.append(await ask(some, "living" if len(some) == 1 else "once"))
        except CallFailed as death:
            if len(some) == 1:
                guilty[some[0].uid] = f"quarantined: {DEATHS} members of {role} died of it; {death}"
            else:
                left += _halves(some)
    return answers, guilty


def _halves(samples: Sequence[SampleHeader]) -> list[Sequence[SampleHeader]]:
    half = (len(samples) + 1) // 2
    return [part for part in (samples[half:], samples[:half]) if part]


def teacher_of(route: Route, row: Mapping[str, Any]) -> str | None:
    """The model that a prompt row's field leads to; None where it leads nowhere."""
    value = route.value_of(row)
    return None if value is None else route.models.get(value)


def kept_seed(prompt_ids: Sequence[int], sample: int, run_seed: int) -> int:
    """Seed of a teacher's response: of the prompt and not of its place, so that every epoch finds it again."""
    digest = hashlib.blake2b(f"{run_seed}/{list(prompt_ids)}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
