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
class _Wanted:
    """What a lease still wants: tickets `running` until their last segment is yielded. Of a response that is `gone`,
    lost or rejected, no segment is; one that is `cut` will end soon."""

    running: dict[str, Ticket]
    gone: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)


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
        wanted = _Wanted({ticket.uid: ticket for ticket in lease.tickets})
        pool, died = self.writers[lease.source], False
        member = next((m for m in pool.members if m.number == lease.member), None)
        async with asyncio.TaskGroup() as blocks:
            try:
                if member is not None:  # else it left or died between the grant and this turn
                    pairs = [(ticket, prompts[ticket.uid]) for ticket in lease.tickets]
                    async for block in self.flow.sample(pool, member, pairs, lease.source, cap):
                        blocks.create_task(self.judge(self._select(block, wanted), prompts, wanted))
                        self.moved()
            except MemberDied:
                died = True
            except ValueLost:
                pass  # of a header; its samples are still open
            for uid in wanted.running:
                self.segments.forget(uid)
            for index in self.dispatch.settle(lease, wanted.running.values(), died):
                self._quarantine(index, f"{DEATHS} members of {pool.role} died of it")
            self.moved()

    async def judge(self, block: Block, prompts: Mapping[str, Prompt], wanted: _Wanted) -> None:
        """Score, reward and admit a block. What went down with a node is sampled again; a response that is rejected, or
        whose target has lost the thread, is ended."""
        try:
            good, rejected = await self.flow.judge(block, prompts)
        except ValueLost:
            self._lose(block.samples, wanted)
        else:
            for part in good:
                if part.header.uid not in wanted.gone and (whole := self.segments.join(part)):
                    self.buffer.admit(whole)
            for uid, reason in rejected.items():
                self._give_up(uid, wanted)
                self.skip(uid, reason)
            adrift = {p.header.uid for p in good if self.segments.adrift(p.header, self.early_stop)} - wanted.cut
            self.meter.count("samples_cut", len(adrift))
            wanted.cut |= adrift
            await self._cut(block, adrift | rejected.keys())
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

    def _select(self, block: Block, wanted: _Wanted) -> Block:
        """What is wanted of a block. Responses that end with it run no longer."""
        samples = [s for s in block.samples if s.uid in wanted.running]
        aborted = [s for s in samples if s.finish == "abort"]  # by a weight update, where the recipe says so
        self._lose(aborted, wanted)
        for sample in samples:
            if sample.last:
                wanted.running.pop(sample.uid, None)
        return replace(block, samples=tuple(s for s in samples if s not in aborted))

    def _lose(self, samples: Iterable[SampleHeader], wanted: _Wanted) -> None:
        """What was yielded and is lost is sampled again, under its next attempt."""
        lost = [s for s in samples if s.uid not in wanted.gone]
        for sample in lost:
            self._give_up(sample.uid, wanted)
        self.dispatch.lose(Ticket.of(s.uid, s.attempt) for s in lost)

    def _give_up(self, uid: str, wanted: _Wanted) -> None:
        wanted.running.pop(uid, None)
        wanted.gone.add(uid)
        self.segments.forget(uid)

    async def _cut(self, block: Block, uids: Set[str]) -> None:
        """End responses that are still being sampled; their last segment says so."""
        running = sorted(s.uid for s in block.samples if not s.last and s.uid in uids)
        pool = self.writers[block.source]
        member = next((m for m in pool.members if m.number == block.member), None)
        if running and member is not None:
            with suppress(MemberDied):  # which ends them too
                await pool.call_member(member, "cut", running)

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
