"""Calls to members for a sample: submit prompts, receive blocks, score and reward them.

A block's payload goes by reference to a scorer of each model and to a reward member, in parallel, as soon as it exists.
Only headers are opened here.
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
from actors.wire.rewards import Rewards
from configs.node import START
from configs.objective import Route
from configs.schema import Recipe, Sampling
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import CallFailed, Patience, Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.telemetry import Meter
from orchestrator.samples.buffer import Scored
from orchestrator.samples.leases import Ticket
from orchestrator.samples.prompts import Prompt


@dataclass(frozen=True)
class Block:
    """A reference to a payload, and the headers of its wanted samples. `member` is the number of the member of `source`
    that wrote them. For segments: the `channel` they came in, and by uid the `earlier` payloads of the response."""

    payload: Any
    samples: tuple[SampleHeader, ...]
    source: str = "student"
    member: int = 0
    channel: str = ""
    earlier: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


class Flow:
    """Calls of one run. Responses end at `end_token_ids`, and arrive in segments of `segment_tokens`; 0: whole.
    `alarm(model, suspicion)` checks the members behind suspicious scores, and returns whether it replaced any."""

    def __init__(
        self, recipe: Recipe, pools: Pools, meter: Meter, end_token_ids: Sequence[int], segment_tokens: int = 0
    ) -> None:
        self._recipe = recipe
        self._pools = pools
        self._meter = meter
        self._end_token_ids = tuple(end_token_ids)
        self._segment_tokens = segment_tokens
        self.alarm: Callable[[str, str], Awaitable[bool]] = _no_alarm

    async def submit(
        self,
        pool: Pool,
        member: PoolMember,
        channel: str,
        tickets: Sequence[tuple[Ticket, Prompt]],
        source: str,
        sampling: Sampling,
    ) -> None:
        """Submit tickets to a member, which writes the responses to `channel`. Raises MemberDied."""
        requests = [self._request(ticket, prompt, source) for ticket, prompt in tickets]
        await pool.call_member(member, "submit", channel, requests, sampling, self._end_token_ids)

    async def blocks(
        self, pool: Pool, member: PoolMember, channel: str, source: str, since: Callable[[], float | None]
    ) -> AsyncIterator[Block]:
        """Yield the blocks of a member's channel while the member lives; `since` as in Pool.stream. Raises
        MemberDied."""
        header: BlockHeader
        async for payload, header in pool.stream(member, "blocks", channel, self._recipe.stream, since=since):
            self._meter.count("tokens_generated", sum(s.response_tokens for s in header.samples))
            self._meter.payload(header.payload_bytes)
            yield Block(payload, header.samples, source, member.number, channel)

    async def score_and_reward(
        self, block: Block, prompts: Mapping[str, Prompt]
    ) -> tuple[list[Scored], dict[str, str]]:
        """Score a block's samples or segments, and reward the responses that have ended. Returns those that can be
        trained, and the reasons of the others by uid. Raises ValueLost."""
        models = self._recipe.scored_models
        scoring = (self._score(block, prompts, model) for model in models)
        answered: list[Any] = await asyncio.gather(*scoring, self._reward(block, prompts))
        *scored, rewards = answered
        rejected = dict(rewards.rejected) | _unusable(block)
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
                reward=rewards.values.get(header.uid),
                components=rewards.components.get(header.uid, {}),
                source=block.source,
                teacher_entropy=fmean(entropies[header.uid]) if entropies[header.uid] else None,
                log_ratio=log_ratios.get(header.uid),
                base_prompts={model: prompts[header.uid].ids[model] for model in self._recipe.privileged_base},
            )
            for header in block.samples
            if header.uid not in rejected
        ]
        return good, rejected

    def scorers(self) -> tuple[Pool, ...]:
        """The scorer pools."""
        return tuple(self._pools.scorers.values())

    def congested(self) -> bool:
        """Whether a scorer's load, in tokens, exceeds what its members may hold. Nothing is leased meanwhile."""
        return any(
            pool.load() > (pool.line.most(pool.members) or self._recipe.scorer_of(model).max_queued_tokens)
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
        """Score the samples that `model` scores. Returns (reference, header) pairs, and the reasons of samples that
        kill its members. A scorer that lacks earlier segments of a response is called again with their payloads."""
        pool = self._pools.scorers[model]
        mine = [s for s in block.samples if self._scores(prompts[s.uid], model)]
        near = block.member if self._segment_tokens else None  # the scorer that holds the KV cache of earlier segments

        async def score(request: ScoreRequest, tokens: int, patience: Patience, *earlier: Any) -> Any:
            with self._meter.clock("score").busy():
                return await pool.call(
                    "score", block.payload, request, *earlier, load=tokens, returns=2, near=near, patience=patience
                )

        async def call(samples: Sequence[SampleHeader], patience: Patience, *earlier: Any) -> tuple[Any, ScoreHeader]:
            request = self._score_request(block, {s.uid: prompts[s.uid].ids[model] for s in samples}, model)
            tokens = sum(s.prompt_tokens + s.response_tokens for s in samples)
            ref, header = await score(request, tokens, patience, *earlier)
            if header.suspicion:
                self._meter.count("scores_suspicious", header.tokens)
                if await self.alarm(model, header.suspicion):  # the scorer is being replaced
                    ref, header = await score(request, tokens, patience, *earlier)
            self._count_scores(header)
            return ref, header

        async def ask(samples: Sequence[SampleHeader], patience: Patience) -> list[tuple[Any, ScoreHeader]]:
            answer = await call(samples, patience)
            if not (unknown := [s for s in samples if s.uid in answer[1].unknown]):
                return [answer]
            earlier = {id(ref): ref for s in unknown for ref in block.earlier[s.uid]}
            return [answer, await call(unknown, patience, *earlier.values())]

        answers, killers = await isolate(ask, mine, pool.alone, f"scorer.{model}")
        return [answer for several in answers for answer in several], killers

    def _score_request(self, block: Block, prompt_ids: dict[str, list[int]], model: str) -> ScoreRequest:
        """What `model` is asked for, of the samples of a block whose prompt ids under it are given by uid."""
        objective, support = self._recipe.objective, self._recipe.support_of[model]
        return ScoreRequest(
            support=support,
            topk=objective.topk if support == "topk" else 0,
            topk_of=objective.topk_of if block.source == "student" else "teacher",
            prompts=prompt_ids,
            reusable=block.source != "student",
            channel=block.channel,
            ends=objective.merged_ends(self._end_token_ids, model),
        )

    def _count_scores(self, header: ScoreHeader) -> None:
        self._meter.count("tokens_scored", header.tokens)
        self._meter.count("score_bytes", header.payload_bytes)
        self._meter.count("tails_floored", header.tails_floored)
        self._meter.count("scores_from_files", header.from_files)
        self._meter.payload(header.payload_bytes)

    async def _reward(self, block: Block, prompts: Mapping[str, Prompt]) -> Rewards:
        if not self._recipe.reward.gives_rewards:
            return Rewards({})
        pool, rules = self._pools.reward, self._recipe.reward.rules

        async def ask(samples: Sequence[SampleHeader], patience: Patience) -> Rewards:
            fields = {s.uid: prompts[s.uid].row for s in samples}
            with self._meter.clock("reward").busy():
                (rewards,) = await pool.call("reward", block.payload, rules, fields, patience=patience)
            return rewards

        ended = [s for s in block.samples if s.last]
        answers, killers = await isolate(ask, ended, pool.alone, "reward")
        return _joined(answers, killers)

    def _scores(self, prompt: Prompt, model: str) -> bool:
        """Whether a model scores a prompt: a routed teacher scores those that name it, every other model all."""
        objective = self._recipe.objective
        always = {
            START,
            objective.reference and objective.reference.model,
            objective.extrapolate and objective.extrapolate.base,
        }
        if not isinstance(objective.target, Route) or model in always:
            return True
        return teacher_of(objective.target, prompt.row) == model


def _joined(answers: Sequence[Rewards], killers: Mapping[str, str]) -> Rewards:
    """Several answers as one. `killers` are rejected too, and so is a reward that is not finite."""
    values = {uid: reward for answer in answers for uid, reward in answer.values.items()}
    components = {uid: parts for answer in answers for uid, parts in answer.components.items()}
    rejected = {uid: reason for answer in answers for uid, reason in answer.rejected.items()} | dict(killers)
    rejected |= {uid: f"its reward is {reward}" for uid, reward in values.items() if not math.isfinite(reward)}
    return Rewards(values, components, rejected)


async def _no_alarm(model: str, suspicion: str) -> bool:
    """Ignore suspicious scores."""
    return False


Answer = TypeVar("Answer")


async def isolate(
    ask: Callable[[Sequence[SampleHeader], Patience], Awaitable[Answer]],
    samples: Sequence[SampleHeader],
    alone: asyncio.Lock,
    role: str,
) -> tuple[list[Answer], dict[str, str]]:
    """Call `ask(samples, patience)` for all samples. If two members die under it, call it for halves, and halve again
    wherever a member dies, down to single samples.

    Returns the answers, and by uid the reasons of guilty samples: those that alone killed DEATHS living members. The
    lock `alone` lets one suspect call run at a time.
    """
    if not samples:
        return [], {}
    try:
        return [await ask(samples, "once")], {}
    except CallFailed:  # most deaths have another cause: try all once more before halving
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
    """The teacher that a row's routing field names; None without one."""
    value = route.value_of(row)
    return None if value is None else route.models.get(value)


def kept_seed(prompt_ids: Sequence[int], sample: int, run_seed: int) -> int:
    """Seed of a teacher's response, 63 bits. It depends on the prompt, not its index, so that every epoch finds the
    response in the cache."""
    digest = hashlib.blake2b(f"{run_seed}/{list(prompt_ids)}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _unusable(block: Block) -> dict[str, str]:
    """The reasons of samples that cannot be trained whatever their scores are, by uid."""
    found = {s.uid: "no token carries loss" for s in block.samples if not s.loss_tokens}
    if block.source == "student":
        found |= {s.uid: "the sampler's log-probs are not finite" for s in block.samples if not s.finite}
    return found
