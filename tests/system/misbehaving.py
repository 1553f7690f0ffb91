"""Simulated members that misbehave, each in one way, after some good steps. They sleep without holding up the other
runs of their process."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.jobs import Share
from actors.wire.records import Request, Sample, ScoreHeader, ScoreRequest
from configs.roles.scorer import Scorer
from configs.schema import Sampling
from orchestrator.pools.layout import MemberSpecs
from orchestrator.samples.leases import Ticket
from tests.unit.simulation import GROUPS, simulated

PACE = 0.6  # seconds of a learner's step
ONSET = 12  # steps before a member misbehaves
HANGS = 8.0  # seconds
FAT = 8_000_000  # bytes of a response's scores
SLOW = 0.02  # seconds a token, of a learner
SLIGHT, DRIFTED, FAR = 0.008, 0.03, 0.08  # nats between rollout and learner


class PacedLearner(SimulatedLearner):
    pace = PACE

    async def step(self, share: Share) -> dict[str, Any]:
        await asyncio.sleep(self.pace)
        return super().step(share)


class HangingLearner(PacedLearner):
    """Hangs once, in a step."""

    async def step(self, share: Share) -> dict[str, Any]:
        await asyncio.sleep(HANGS if share.step == ONSET else 0.0)
        return await super().step(share)


class BrokenLearner(PacedLearner):
    """The loss of one step is not a number."""

    def evaluate(self, share: Share) -> dict[str, Any]:
        return super().evaluate(share) | ({"loss": math.nan} if share.step == ONSET else {})


class SteadyRollout(SimulatedRollout):
    """Of the responses of a step, one is cut: of so few, chance would double their share now and then."""

    def length(self, request: Request, sampling: Sampling) -> int:
        most, ticket = sampling.max_response_tokens, Ticket.of(request.uid, request.attempt)
        return most if self.endless(ticket) else min(most - 1, super().length(request, sampling))

    def endless(self, ticket: Ticket) -> bool:
        return ticket.index % GROUPS == 0 and ticket.sample == 0


class StillbornRollout(SteadyRollout):
    """Never starts."""

    async def start(self) -> None:
        await asyncio.Event().wait()


class FarRollout(SteadyRollout):
    """Its log-probs are not the learner's."""

    def gap(self) -> float:
        return FAR

    async def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        async with aclosing(super().write(request, sampling, end_token_ids)) as rows:
            async for row in rows:
                yield replace(row, rollout_logprobs=[logprob - self.gap() for logprob in row.rollout_logprobs])


class DriftingRollout(FarRollout):
    """With the steps, its log-probs leave the learner's, and more responses find no end."""

    def gap(self) -> float:
        return DRIFTED if self._version >= ONSET else SLIGHT

    def endless(self, ticket: Ticket) -> bool:
        return super().endless(ticket) or (self._version >= ONSET and ticket.sample == 0)


class UniformScorer(SimulatedScorer):
    """The first one that is built gives every token the same log-prob after some good calls."""

    def __init__(self, built: Iterator[int], speeds: Speeds, vocabulary: int, version: int) -> None:
        super().__init__(speeds, vocabulary, version)
        self._good = 50 if next(built) == 0 else math.inf

    def logprobs(self, response_ids: Sequence[int]) -> np.ndarray:
        self._good -= 1
        found = super().logprobs(response_ids)
        return found if self._good > 0 else np.full_like(found, -math.log(self._vocabulary))


class FatScorer(SimulatedScorer):
    """An engine that a recipe can name: its answers are large."""

    def __init__(self, config: Scorer, model: str, vocabulary: int, version: int) -> None:
        super().__init__(Speeds(), vocabulary, version)

    async def score(
        self, payload: pa.RecordBatch, request: ScoreRequest, *earlier: pa.RecordBatch
    ) -> tuple[pa.RecordBatch, ScoreHeader]:
        scores, header = await super().score(payload, request, *earlier)
        fat = pa.array([bytes(FAT)] * scores.num_rows)
        return pa.RecordBatch.from_arrays([*scores.columns, fat], names=[*scores.schema.names, "fat"]), header


class SlowLearner(SimulatedLearner):
    """An engine that a recipe can name: what others made waits for it."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__(Speeds(learn=SLOW), rank, ranks)


def members(
    learner: type = PacedLearner,
    rollout: type = SteadyRollout,
    scorer: Callable[..., SimulatedScorer] = SimulatedScorer,
    reward: type = SimulatedReward,
    speeds: Speeds | None = None,
) -> MemberSpecs:
    """Those of a run."""
    plain = simulated(speeds or Speeds())
    return replace(
        plain,
        learner=lambda recipe: replace(plain.learner(recipe), cls=learner),
        rollout=lambda recipe: replace(plain.rollout(recipe), cls=rollout),
        scorer=lambda *asked: replace(plain.scorer(*asked), cls=scorer),
        reward=lambda recipe: replace(plain.reward(recipe), cls=reward),
    )


def one_uniform() -> Callable[..., SimulatedScorer]:
    """Scorers of a run, of which the first is wrong."""
    return partial(UniformScorer, count())
