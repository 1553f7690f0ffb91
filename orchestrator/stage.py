"""One stage of training: two loops, roll out and learn.

`roll_out` leases prompt groups as far ahead as the staleness bound allows; every block of finished responses is
scored and rewarded at once. `learn` waits for the next whole batch in lease order, updates, and publishes a version
that members pull before they sample again. The loops meet in the dispatch and the buffer, nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.metrics import step_line
from configs.schema import Recipe
from orchestrator.buffer import Buffer, Scored
from orchestrator.dispatch import Dispatch, Lease, Ticket
from orchestrator.flow import Block, Flow, Pools
from orchestrator.learning import LearnerGroup
from orchestrator.pool import PoolMember
from orchestrator.prompts import Prompt, PromptStream
from orchestrator.telemetry import Meter
from orchestrator.transport import MemberDied, ValueLost
from orchestrator.versions import Versions


@dataclass
class Progress:
    """What a resume needs to go on: updates made, and the version of the weights they led to."""

    step: int = 0
    version: int = 0


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
    after_step: Callable[[Mapping[str, Any]], Awaitable[None]]
    notice: Callable[[str], None]

    def __post_init__(self) -> None:
        batch, first = self.recipe.batch, self.progress.step * self.recipe.batch.prompts_per_step
        self.sampler = self.pools.sampler(self.recipe.objective.prefix)
        self.dispatch = Dispatch(
            batch.prompts_per_step,
            batch.samples_per_prompt,
            self.recipe.max_staleness,
            self.recipe.run.steps,
            first,
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
                self.sampler.check()
                self._moved.clear()
                for lease in self.dispatch.grant(self.progress.step, self._free()):
                    leases.create_task(self.follow(lease))
                await self._moved.wait()

    async def learn(self, tasks: asyncio.TaskGroup) -> None:
        """Wait for a batch, update, publish; members pull while the next batch forms."""
        while self.progress.step < self.recipe.run.steps and not self.stopping:
            with self.meter.clock("wait").busy():
                batch = await self.next_batch()
            metrics = await self.update(batch)
            pulled = await self.publish(tasks)
            if self.recipe.max_staleness == 0:
                await pulled
            await self.after_step(self._line(batch, metrics))

    async def follow(self, lease: Lease) -> None:
        """Judge the blocks of one lease as they come; lease again what its member took with it."""
        prompts = {ticket.uid: self.prompts[ticket.index] for ticket in lease.tickets}
        open_tickets = {ticket.uid: ticket for ticket in lease.tickets}
        member = next((m for m in self.sampler.members if m.number == lease.member), None)
        if member is None:  # it left or died between the grant and this turn
            self.dispatch.lose(lease.tickets)
            self._moved.set()
            return
        pairs = [(ticket, prompts[ticket.uid]) for ticket in lease.tickets]
        async with asyncio.TaskGroup() as blocks:
            try:
                async for block in self.flow.sample(self.sampler, member, pairs):
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

    async def update(self, batch: list[Scored]) -> dict[str, Any]:
        """One learner step; the samples it trained on are recorded when the recipe says so."""
        step = self.progress.step + 1
        record = self.samples / f"step_{step:06d}" if step % self.recipe.record.every == 0 else None
        with self.meter.clock("learn").busy():
            return await self.learner.step(batch, step, self.progress.version, record)

    async def publish(self, tasks: asyncio.TaskGroup) -> asyncio.Task[None]:
        """Make the new version the current one; returns the task in which members pull it."""
        with self.meter.clock("publish").busy():
            self.versions.current = await self.learner.publish(self.progress.version + 1)
        self.progress.version += 1
        self.progress.step += 1
        return tasks.create_task(self.pull())

    async def pull(self) -> None:
        """Every serving member pulls; one that dies on the way is replaced by its pool, which admits the next."""
        with self.meter.clock("publish").busy():
            await asyncio.gather(*(self._pull(member) for member in self.sampler.serving()))
        self._moved.set()

    async def _pull(self, member: PoolMember) -> None:
        with suppress(MemberDied):  # the pool replaces it
            await self.versions.pull(self.sampler, member)
        self._moved.set()

    def _free(self) -> dict[int, int]:
        """Free slots of members that serve the current version: nobody samples with an older one."""
        current = self.versions.current.number if self.versions.current else self.progress.version
        slots = self.recipe.rollout.max_concurrent
        return {m.number: slots - m.load for m in self.sampler.serving() if m.version == current}

    def _line(self, batch: list[Scored], metrics: Mapping[str, Any]) -> dict[str, Any]:
        counts = self.meter.take()
        headers = [scored.header for scored in batch]
        tokens = sum(h.loss_tokens for h in headers)
        trained_at = self.progress.version - 1
        rewards = [scored.reward for scored in batch if scored.reward is not None]
        scored_tokens, score_bytes = counts.get("tokens_scored", 0), counts.pop("score_bytes", 0)
        names = ("tokens_generated", "tokens_scored", "samples_dropped", "bytes_inlined")
        seconds = tuple(f"seconds_{role}" for role in ("rollout", "score", "reward", "learn", "publish", "wait"))
        return step_line(
            {name: counts.get(name, 0) for name in (*names, *seconds)}
            | dict(metrics)
            | {
                "step": self.progress.step,
                "policy_version": self.progress.version,
                "kl_support": self.recipe.objective.support if self.recipe.objective.needs_scores else None,
                "reward_mean": sum(rewards) / len(rewards) if rewards else None,
                "response_length": sum(h.response_tokens for h in headers) / len(headers),
                "truncated_fraction": sum(h.finish == "length" for h in headers) / len(headers),
                "staleness_mean": trained_at - sum(h.version_sum for h in headers) / tokens,
                "staleness_max": trained_at - min(h.version_min for h in headers),
                "tokens_trained": tokens,
                "score_bytes_per_token": score_bytes / scored_tokens if scored_tokens else None,
                "seconds_step": counts["seconds_step"],
            }
        )
