"""The way of a sample from a rollout member to the buffer: sampled in blocks, scored and rewarded at once.

Only headers are opened here. A block's payload goes by reference to a scorer of each model and to a reward worker, in
parallel, the moment it exists.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.records import BlockHeader, Request, ScoreHeader, ScoreRequest
from configs.schema import Recipe
from orchestrator.buffer import Scored
from orchestrator.dispatch import Ticket
from orchestrator.pool import Pool, PoolMember
from orchestrator.prompts import Prompt
from orchestrator.telemetry import Meter


@dataclass(frozen=True)
class Pools:
    """Every role of a run. `dataset` stands in for `rollout` where prefixes come from a file."""

    rollout: Pool | None
    dataset: Pool | None
    scorers: Mapping[str, Pool]
    reward: Pool
    learner: Pool

    def sampler(self, prefix: str) -> Pool:
        pool = self.dataset if prefix == "dataset" else self.rollout
        assert pool is not None, f"no pool for prefix {prefix}"
        return pool

    def all(self) -> dict[str, Pool]:
        """Pools by role name, in the order of the flow."""
        named = {"rollout": self.rollout, "dataset": self.dataset}
        named |= {f"scorer.{model}": pool for model, pool in self.scorers.items()}
        named |= {"reward": self.reward, "learner": self.learner}
        return {role: pool for role, pool in named.items() if pool is not None}


@dataclass(frozen=True)
class Block:
    """A reference to a payload of samples, and its header."""

    payload: Any
    header: BlockHeader


class Flow:
    """`end_token_ids` end a response."""

    def __init__(self, recipe: Recipe, pools: Pools, meter: Meter, end_token_ids: Sequence[int]) -> None:
        self._recipe = recipe
        self._pools = pools
        self._meter = meter
        self._end_token_ids = tuple(end_token_ids)

    async def sample(
        self, pool: Pool, member: PoolMember, tickets: Sequence[tuple[Ticket, Prompt]]
    ) -> AsyncIterator[Block]:
        """Blocks of one lease as they finish. Raises MemberDied after the blocks that were yielded."""
        requests = [self._request(ticket, prompt) for ticket, prompt in tickets]
        arguments = (requests, self._recipe.sampling, self._recipe.stream, self._end_token_ids)
        stream = pool.stream(member, "generate", *arguments, load=len(requests))
        payload: Any = None
        with self._meter.clock("rollout").busy():
            async for ref in stream:
                if payload is None:
                    payload = ref
                    continue
                header: BlockHeader = await pool.transport.value(ref)
                self._meter.count("tokens_generated", sum(s.response_tokens for s in header.samples))
                self._meter.payload(header.payload_bytes)
                yield Block(payload, header)
                payload = None

    async def judge(self, block: Block, prompts: Mapping[str, Prompt]) -> tuple[list[Scored], dict[str, str]]:
        """Score and reward a block: (samples ready to train on, reasons of those that are not)."""
        scores, rewards = await asyncio.gather(self._score(block, prompts), self._reward(block, prompts))
        ref, score_header = scores
        rejected = dict(score_header.rejected) if score_header else {}
        rejected |= {s.uid: "no token carries loss" for s in block.header.samples if not s.loss_tokens}
        good = [
            Scored(header, block.payload, ref, rewards.get(header.uid))
            for header in block.header.samples
            if header.uid not in rejected
        ]
        return good, rejected

    def _request(self, ticket: Ticket, prompt: Prompt) -> Request:
        return Request(
            uid=ticket.uid,
            group=ticket.group,
            attempt=ticket.attempt,
            seed=ticket.seed(self._recipe.run.seed),
            prompt_ids=prompt.ids["student"],
            response_ids=prompt.response_ids if self._recipe.objective.prefix == "dataset" else None,
        )

    async def _score(self, block: Block, prompts: Mapping[str, Prompt]) -> tuple[Any, ScoreHeader | None]:
        if not self._recipe.scored_models:
            return None, None
        (model,) = self._recipe.scored_models
        request = ScoreRequest(
            support=self._recipe.objective.support,
            topk=self._recipe.objective.topk if self._recipe.objective.support == "topk" else 0,
            prompts={s.uid: prompts[s.uid].ids[model] for s in block.header.samples},
        )
        tokens = sum(s.prompt_tokens + s.response_tokens for s in block.header.samples)
        with self._meter.clock("score").busy():
            ref, header = await self._pools.scorers[model].call("score", block.payload, request, load=tokens, returns=2)
        self._meter.count("tokens_scored", header.tokens)
        self._meter.count("score_bytes", header.payload_bytes)
        self._meter.payload(header.payload_bytes)
        return ref, header

    async def _reward(self, block: Block, prompts: Mapping[str, Prompt]) -> Mapping[str, float]:
        rules = self._recipe.reward.rules
        if not rules:
            return {}
        fields = {s.uid: prompts[s.uid].row for s in block.header.samples}
        with self._meter.clock("reward").busy():
            (rewards,) = await self._pools.reward.call("reward", block.payload, rules, fields)
        return rewards
