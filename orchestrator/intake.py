"""What leases bring in: blocks are judged as they come, segments joined, samples admitted to the buffer.

Nothing that was asked for is forgotten: what dies with a member, is lost with a node or grows too old is leased again;
what cannot be trained is skipped, by name and with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace

from actors.records import SampleHeader
from configs.schema import EarlyStop
from orchestrator.buffer import Batch, Buffer, Scored
from orchestrator.dispatch import DEATHS, Dispatch, Lease, Ticket
from orchestrator.flow import Block, Flow
from orchestrator.pool import Pool
from orchestrator.prompts import Prompt, PromptStream
from orchestrator.segments import Segments
from orchestrator.telemetry import Meter
from orchestrator.transport import MemberDied, ValueLost


@dataclass
class Intake:
    """`moved` is called when there may be room for a lease, or a batch may be whole; `skipped` is uid -> reason."""

    flow: Flow
    writers: Mapping[str, Pool]
    prompts: PromptStream
    dispatch: Dispatch
    buffer: Buffer
    meter: Meter
    early_stop: EarlyStop | None
    notice: Callable[[str], None]
    moved: Callable[[], None]
    skipped: dict[str, str]
    segments: Segments = field(default_factory=Segments)

    async def follow(self, lease: Lease, cap: int) -> None:
        """Judge the blocks of one lease as they come; lease again what its member took with it."""
        prompts = {ticket.uid: self.prompts[ticket.index] for ticket in lease.tickets}
        open_tickets = {ticket.uid: ticket for ticket in lease.tickets}
        pool, died = self.writers[lease.source], False
        member = next((m for m in pool.members if m.number == lease.member), None)
        async with asyncio.TaskGroup() as blocks:
            try:
                if member is not None:  # else it left or died between the grant and this turn
                    pairs = [(ticket, prompts[ticket.uid]) for ticket in lease.tickets]
                    async for block in self.flow.sample(pool, member, pairs, lease.source, cap):
                        blocks.create_task(self.judge(self._wanted(block, open_tickets), prompts, open_tickets))
            except MemberDied:
                died = True
            except ValueLost:
                pass  # of a header; its samples are still open
            for uid in open_tickets:
                self.segments.forget(uid)
            for index in self.dispatch.settle(lease, open_tickets.values(), died):
                self._quarantine(index, f"{DEATHS} members of {pool.role} died of it")
            self.moved()

    async def judge(self, block: Block, prompts: Mapping[str, Prompt], running: dict[str, Ticket]) -> None:
        """Score, reward and admit a block. What went down with a node is sampled again; of what is `running` still,
        nothing more is wanted that is rejected, or whose target has lost the thread."""
        try:
            good, rejected = await self.flow.judge(block, prompts)
        except ValueLost:
            self._lose(block.samples, running)
        else:
            for part in good:
                if whole := self.segments.join(part):
                    self.buffer.admit(whole)
            for uid, reason in rejected.items():
                self.segments.forget(uid)
                self.skip(uid, reason)
            adrift = {p.header.uid for p in good if self.segments.adrift(p.header, self.early_stop)}
            await self._cut(block, running, adrift, rejected.keys())
        self.moved()

    def skip(self, uid: str, reason: str) -> None:
        """Bad data is counted and named, and not asked for again."""
        self.buffer.drop(uid, reason)
        self.skipped[uid] = reason
        self.notice(f"skipped {uid}: {reason}")
        self.meter.count("samples_dropped", 1)

    def take_back(self, batch: Batch, lost: Container[str]) -> None:
        """A batch whose payloads are partly gone: the rest waits in the buffer, what is lost is sampled again."""
        self.buffer.give_back(batch, lost)
        headers = (s.header for s in batch.samples if s.header.uid in lost)
        self.dispatch.lose(Ticket.of(h.uid, h.attempt) for h in headers)
        self.moved()

    def _wanted(self, block: Block, running: dict[str, Ticket]) -> Block:
        """What a block holds of responses that are still asked for; those that end with it run no longer."""
        wanted = tuple(s for s in block.samples if s.uid in running)
        aborted = [s for s in wanted if s.finish == "abort"]  # by a weight update, where the recipe says so
        self._lose(aborted, running)
        for sample in wanted:
            if sample.last:
                running.pop(sample.uid, None)
        return replace(block, samples=tuple(s for s in wanted if s not in aborted))

    def _lose(self, samples: Iterable[SampleHeader], running: dict[str, Ticket]) -> None:
        """What is yielded and lost is sampled again, under its next attempt; its later segments are not wanted."""
        for sample in samples:
            running.pop(sample.uid, None)
            self.segments.forget(sample.uid)
        self.dispatch.lose(Ticket.of(s.uid, s.attempt) for s in samples)

    async def _cut(self, block: Block, running: dict[str, Ticket], adrift: Set[str], rejected: Set[str]) -> None:
        """End running responses early: those `adrift` are trained as far as they went, those `rejected` not at all."""
        for uid in rejected:
            running.pop(uid, None)
        uids = sorted(s.uid for s in block.samples if not s.last and s.uid in adrift | rejected)
        member = next((m for m in self.writers[block.source].members if m.number == block.member), None)
        if uids and member is not None:
            self.meter.count("samples_cut", sum(uid in adrift for uid in uids))
            with suppress(MemberDied):  # which ends them too
                await self.writers[block.source].call_member(member, "cut", uids)

    def lease_again(self, aged: Sequence[Scored]) -> None:
        """Samples that grew too old for the staleness bound are sampled anew."""
        self.dispatch.lose(Ticket.of(s.header.uid, s.header.attempt) for s in aged)
        self.meter.count("samples_aged", len(aged))
        self.meter.count("tokens_aged", sum(s.header.response_tokens for s in aged))
        if aged:
            self.moved()

    def _quarantine(self, index: int, reason: str) -> None:
        for uid in self.buffer.missing(index):
            self.skip(uid, f"quarantined: {reason}")
