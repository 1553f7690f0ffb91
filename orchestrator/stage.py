"""One stage of training: two loops, roll out and learn.

`roll_out` leases prompt groups as far ahead as the staleness bound allows; every block of finished responses is
scored and rewarded at once. `learn` waits for the next whole batch in lease order, updates, and publishes a version
that members pull before they sample again. The loops meet in the dispatch and the buffer, nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.metrics import step_line
from configs.schema import Recipe
from objectives.curriculum import Ladder
from objectives.schedule import Dials, adapted_beta, dials_at, fractions_at
from orchestrator.buffer import Buffer, Scored
from orchestrator.credit import groups_without_signal
from orchestrator.dispatch import Dispatch, Lease, Ticket, source_of
from orchestrator.flow import Block, Flow, Pools
from orchestrator.learning import LearnerGroup
from orchestrator.pool import Pool, PoolMember
from orchestrator.prompts import Prompt, PromptStream
from orchestrator.telemetry import Meter
from orchestrator.transport import MemberDied, ValueLost
from orchestrator.versions import Versions


@dataclass
class Progress:
    """What a resume needs to go on: updates made, the version of the weights they led to, the reference's coefficient
    where it adapts, and where the length curriculum stands."""

    step: int = 0
    version: int = 0
    beta: float = 0.0
    ladder: Ladder = field(default_factory=Ladder)


@dataclass
class Stage:
    recipe: Recipe
    pools: Pools
    flow: Flow
    learner: LearnerGroup
    versions: Versions
    prompts: PromptStream
    progress: Progress
    meter: Meter
    samples: Path
    after_publish: Callable[[], Awaitable[None]]
    after_step: Callable[[Mapping[str, Any]], Awaitable[None]]
    notice: Callable[[str], None]

    def __post_init__(self) -> None:
        batch, first = self.recipe.batch, self.progress.step * self.recipe.batch.prompts_per_step
        writers = self.pools.writers()
        self.writers = {source: writers[source] for source in self.recipe.objective.sources}
        self.dispatch = Dispatch(
            batch.prompts_per_step,
            batch.samples_per_prompt,
            self.recipe.max_staleness,
            self.recipe.run.steps,
            first,
            self._source,
        )
        self.buffer = Buffer(batch.prompts_per_step, batch.samples_per_prompt, first)
        self.stopping = False
        self._moved = asyncio.Event()  # there may be room for a lease, or a batch may be whole

    async def run(self) -> None:
        """Roll out and learn until the last step, or until `stopping` is set and the step under way is done."""
        for pool in self.pools.all().values():
            pool.on_change = self._moved.set
        async with asyncio.TaskGroup() as tasks:
            rolling = tasks.create_task(self.roll_out())
            await self.learn(tasks)
            rolling.cancel()

    async def roll_out(self) -> None:
        """Lease what capacity and free members allow; sleep until something moves."""
        async with asyncio.TaskGroup() as leases:
            while True:
                for pool in self.writers.values():
                    pool.check()
                self._moved.clear()
                for lease in self.dispatch.grant(self.progress.step, self._free(), self._judged_at):
                    leases.create_task(self.follow(lease))
                await self._moved.wait()

    async def learn(self, tasks: asyncio.TaskGroup) -> None:
        """Wait for a batch, update, publish; members pull while the next batch forms."""
        while self.progress.step < self.recipe.run.steps and not self.stopping:
            with self.meter.clock("wait").busy():
                batch = await self.next_batch()
            dials = dials_at(self.recipe.objective, self.progress.step + 1, self.progress.beta)
            cap, metrics = self._cap, await self.update(batch, dials)
            self._adapt(batch, metrics)
            pulled = await self.publish(tasks)
            if self.recipe.max_staleness == 0:
                await pulled
            await self.after_step(self._line(batch, dials, metrics, cap))
            self._moved.set()

    async def follow(self, lease: Lease) -> None:
        """Judge the blocks of one lease as they come; lease again what its member took with it."""
        prompts = {ticket.uid: self.prompts[ticket.index] for ticket in lease.tickets}
        open_tickets = {ticket.uid: ticket for ticket in lease.tickets}
        pool = self.writers[lease.source]
        member = next((m for m in pool.members if m.number == lease.member), None)
        if member is None:  # it left or died between the grant and this turn
            self.dispatch.lose(lease.tickets)
            self._moved.set()
            return
        pairs = [(ticket, prompts[ticket.uid]) for ticket in lease.tickets]
        async with asyncio.TaskGroup() as blocks:
            try:
                async for block in self.flow.sample(pool, member, pairs, lease.source, self._cap):
                    tickets = [open_tickets.pop(s.uid) for s in block.header.samples]
                    blocks.create_task(self.judge(block, prompts, tickets))
            except (MemberDied, ValueLost):
                self.dispatch.lose(open_tickets.values())
                self._moved.set()

    async def judge(self, block: Block, prompts: Mapping[str, Prompt], tickets: list[Ticket]) -> None:
        """Score, reward and admit a block; what went down with a node is sampled again."""
        try:
            good, rejected = await self.flow.judge(block, prompts)
        except ValueLost:
            self.dispatch.lose(tickets)
        else:
            for scored in good:
                self.buffer.admit(scored)
            for uid, reason in rejected.items():
                self.buffer.drop(uid, reason)
                self.notice(f"skipped {uid}: {reason}")
            self.meter.count("samples_dropped", len(rejected))
        self._moved.set()

    async def next_batch(self) -> list[Scored]:
        """The next batch in lease order, whole."""
        while (batch := self.buffer.take()) is None:
            self._moved.clear()
            await self._moved.wait()
        if not batch:
            uid, reason = self.buffer.last_dropped or ("?", "unknown")
            raise RuntimeError(f"every sample of step {self.progress.step + 1} was rejected, e.g. {uid}: {reason}")
        return batch

    async def update(self, batch: list[Scored], dials: Dials) -> dict[str, Any]:
        """One learner step; the samples it trained on are recorded when the recipe says so."""
        step = self.progress.step + 1
        record = self.samples / f"step_{step:06d}" if step % self.recipe.record.every == 0 else None
        with self.meter.clock("learn").busy():
            return await self.learner.step(batch, step, self.progress.version, dials, record)

    async def publish(self, tasks: asyncio.TaskGroup) -> asyncio.Task[None]:
        """Make the new version the current one; returns the task in which members pull it."""
        with self.meter.clock("publish").busy():
            self.versions.current = await self.learner.publish(self.progress.version + 1)
            self.progress.version += 1
            self.progress.step += 1
            await self.after_publish()
        return tasks.create_task(self.pull())

    async def pull(self) -> None:
        """Every serving member pulls; one that dies on the way is replaced by its pool, which admits the next."""
        with self.meter.clock("publish").busy():
            writers = self.writers.values()
            await asyncio.gather(*(self._pull(pool, member) for pool in writers for member in pool.serving()))
        self._moved.set()

    async def _pull(self, pool: Pool, member: PoolMember) -> None:
        with suppress(MemberDied):  # the pool replaces it
            await self.versions.pull(pool, member)
        self._moved.set()

    def _free(self) -> dict[str, dict[int, int]]:
        """Free slots of members that serve the current version: nobody samples with an older one."""
        current = self.versions.current.number if self.versions.current else self.progress.version
        slots = {"student": self.recipe.rollout.max_concurrent, "teacher": self.recipe.teacher_rollout.max_concurrent}
        return {
            source: {
                m.number: slots.get(source, self.recipe.samples_per_step) - m.load
                for m in pool.serving()
                if m.version == current
            }
            for source, pool in self.writers.items()
        }

    def _source(self, index: int) -> str:
        """Who writes a prompt group, by the fractions of the step that will train it."""
        step = index // self.recipe.batch.prompts_per_step + 1
        return source_of(index, fractions_at(self.recipe.objective, step), self.recipe.run.seed)

    @property
    def _judged_at(self) -> int | None:
        """The step after which the length curriculum is judged next: which cap, and after a rollback which weights,
        later groups are sampled with is not known before."""
        length, ladder = self.recipe.objective.length, self.progress.ladder
        if length is None or ladder.settled:
            return None
        return self.progress.step + length.steps_per_stage - ladder.steps

    @property
    def _cap(self) -> int:
        length = self.recipe.objective.length
        return self.progress.ladder.cap(length) if length else self.recipe.sampling.max_response_tokens

    def _adapt(self, batch: list[Scored], metrics: Mapping[str, Any]) -> None:
        """Move what follows from the step: the reference's coefficient, and the curriculum's count of steps."""
        kl, drawn = metrics.get("reference_kl"), [s.header for s in batch if s.source == "student"]
        if kl is not None and drawn:
            of_response = kl * sum(h.loss_tokens for h in drawn) / len(drawn)
            self.progress.beta = adapted_beta(self.recipe.objective, self.progress.beta, of_response, len(drawn))
        if self.recipe.objective.length:
            self.progress.ladder = self.progress.ladder.stepped()

    def _line(self, batch: list[Scored], dials: Dials, metrics: Mapping[str, Any], cap: int) -> dict[str, Any]:
        counts = self.meter.take()
        headers = [scored.header for scored in batch]
        tokens = sum(h.loss_tokens for h in headers)
        trained_at = self.progress.version - 1
        rewards = [s.reward for s in batch if s.reward is not None and s.source == "student"]
        scored_tokens, score_bytes = counts.get("tokens_scored", 0), counts.pop("score_bytes", 0)
        names = ("tokens_generated", "tokens_scored", "samples_dropped", "bytes_inlined")
        seconds = tuple(f"seconds_{role}" for role in ("rollout", "score", "reward", "learn", "publish", "wait"))
        return step_line(
            {name: counts.get(name, 0) for name in (*names, *seconds)}
            | dict(metrics)
            | {
                "step": self.progress.step,
                "policy_version": self.progress.version,
                "kl_support": self.recipe.objective.support if self.recipe.objective.teachers else None,
                "reverse_weight": dials.reverse_weight if self.recipe.objective.teachers else None,
                "beta": dials.beta if self.recipe.objective.reference else None,
                "reward_mean": sum(rewards) / len(rewards) if rewards else None,
                "teacher_entropy": _teacher_entropy(batch),
                "groups_without_signal": groups_without_signal(batch),
                "foreign_fraction": sum(scored.source != "student" for scored in batch) / len(batch),
                "response_cap": cap,
                "response_length": sum(h.response_tokens for h in headers) / len(headers),
                "truncated_fraction": sum(h.finish == "length" for h in headers) / len(headers),
                "staleness_mean": trained_at - sum(h.version_sum for h in headers) / tokens,
                "staleness_max": trained_at - min(h.version_min for h in headers),
                "tokens_trained": tokens,
                "score_bytes_per_token": score_bytes / scored_tokens if scored_tokens else None,
                "seconds_step": counts["seconds_step"],
            }
        )


def _teacher_entropy(batch: list[Scored]) -> float | None:
    """Nats a token; the teachers' mean where several score a response. None where a scorer does not know it."""
    known = [scored.teacher_entropy for scored in batch if scored.teacher_entropy is not None]
    tokens = sum(scored.header.response_tokens for scored in batch)
    return sum(known) / tokens if len(known) == len(batch) else None
