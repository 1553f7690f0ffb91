"""Simulated members of which as much is known as of real ones: the learner measures by the code of the real one, and
scorers tell their entropy. Nobody computes a model: each token of a response is drawn for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from actors.learning.batch import Batch
from actors.learning.readings import Readings
from actors.learning.student import STREAMS
from actors.simulated.learner import SimulatedLearner
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from actors.wire.jobs import LearnerSpec, Share
from actors.wire.records import Request, Sample, ScoreHeader, ScoreRequest, unpack_samples
from actors.wire.rewards import Rewards
from configs.reward_rules import Rule
from configs.schema import Sampling
from objectives import objective
from orchestrator.evaluation.heldout import HELDOUT_INDEX
from orchestrator.samples.leases import Ticket
from tests.unit.simulation import GROUPS, VOCABULARY

STUDENT, TEACHER = 0, 1  # seeds
MOVED = 0.01  # nats, about: how far the student's logits are from its start
RARE, LATE = 3 * GROUPS, 4  # one response in so many prompt groups is late, by so many versions
BAD = 5  # tokens of a response that cannot be rewarded


@cache
def logits(seed: int) -> torch.Tensor:
    """[V] of a language in which no token depends on another."""
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


@cache
def logprobs(seed: int) -> np.ndarray:
    """[V] of the same, nats."""
    return logits(seed).log_softmax(0).numpy()


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of one rank, as readings are summed over ranks, with one thread: there is little to compute."""
    if dist.is_initialized():  # by another test of this process
        yield
        return
    threads = torch.get_num_threads()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        dist.destroy_process_group()


class MeasuringLearner(SimulatedLearner):
    """Its student leaves its start with each step, a little, in all tokens."""

    def start(self, spec: LearnerSpec, meeting: tuple[str, int]) -> None:
        super().start(spec, meeting)
        self._spec = spec
        self._objective = objective.build(spec.objective, spec.start_kl)

    def step(self, share: Share) -> dict[str, Any]:
        metrics = super().step(share)
        if self._spec.updates == 1:
            return metrics
        return metrics | {"held_fraction": self._read(self._trained).reduced(share)["held_fraction"]}

    def evaluate(self, share: Share) -> dict[str, Any]:
        batch = Batch(share, self._payloads, self._spec.objective, True, self._spec.start_kl)
        read = self._read(batch)
        batch.old, self._trained = read.student, batch
        return super().evaluate(share) | read.reduced(share) | {"each": read.each()}

    @torch.no_grad()
    def _read(self, batch: Batch) -> Readings:
        read, own, dials = Readings(batch, self._spec.compares_sampler), self._objective, batch.share.dials
        student = self._student()
        for uids in batch.share.micro_batches:
            targets = batch.micro_batch(uids)[1]
            tokens = targets.tokens
            streams = own.read(student.expand(len(tokens), -1), tokens, dials)
            if "value" in own.config.terms:
                streams["value"] = streams["logprob"]  # it has no head: any number a token does
            loss, sums = own.loss(streams, tokens, dials), own.metrics(streams, tokens, dials)
            kept = {name: streams[name] for name in STREAMS if name in streams}
            read.add(uids, targets, loss, sums, kept | own.each(streams, tokens))
        return read

    def _student(self) -> torch.Tensor:
        """[V] log-probs, nats."""
        moved = torch.from_numpy(self._weights - self._start).repeat(VOCABULARY // len(self._weights))
        return (logits(STUDENT) + MOVED * moved).log_softmax(0)


class KnownRollout(SimulatedRollout):
    """Tells the log-probs of the student that training began with."""

    async def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        written = super().write(request, sampling, end_token_ids)
        async with aclosing(written) as rows:  # pyright: ignore[reportArgumentType]
            async for row in rows:
                yield replace(row, rollout_logprobs=logprobs(STUDENT)[row.response_ids].tolist())


class LateRollout(KnownRollout):
    """Of some responses in training half is drawn, and the rest some versions later: the first half, and the other
    response of the group, are too old then."""

    async def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        begun, ticket = self._version, Ticket.of(request.uid, request.attempt)
        late = ticket.index in range(0, HELDOUT_INDEX, RARE) and ticket.sample == ticket.attempt == 0
        while late and self._version < begun + LATE:
            await asyncio.sleep(0.01)
        written = super().write(request, sampling, end_token_ids)
        async with aclosing(written) as rows:  # pyright: ignore[reportArgumentType]
            async for row in rows:
                early = len(row.versions) // 2 if late else 0
                yield replace(row, versions=[begun] * early + row.versions[early:])


class KnownScorer(SimulatedScorer):
    """Whatever the model, it is the same teacher."""

    def logprobs(self, response_ids: Sequence[int]) -> np.ndarray:
        return logprobs(TEACHER)[list(response_ids)]

    async def score(
        self, payload: pa.RecordBatch, request: ScoreRequest, *earlier: pa.RecordBatch
    ) -> tuple[pa.RecordBatch, ScoreHeader]:
        scores, header = await super().score(payload, request, *earlier)
        entropy = -float((np.exp(logprobs(TEACHER)) * logprobs(TEACHER)).sum())
        tokens = [len(one) for one in scores.column("logprobs")]
        return scores, header._replace(entropies=tuple(entropy * count for count in tokens))


class PickyReward(SimulatedReward):
    """Cannot reward responses of one length."""

    def reward(
        self, payload: pa.RecordBatch, rules: Sequence[Rule], fields: Mapping[str, Mapping[str, Any]]
    ) -> Rewards:
        bad = {s.uid: "unreadable" for s in unpack_samples(payload) if s.uid in fields and len(s.response_ids) == BAD}
        good = super().reward(payload, rules, {uid: row for uid, row in fields.items() if uid not in bad})
        return replace(good, rejected=bad)
