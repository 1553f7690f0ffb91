"""Collects what leases yield: blocks are scored as they arrive, segments joined, samples put into the buffer.

Every response of a lease is buffered, resampled or skipped: resampled if its member died, its payload was lost or it
grew too old; skipped, with a reason, if it cannot be trained.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from traceback import clear_frames
from typing import Any
from uuid import uuid4

from actors.wire.records import SampleHeader
from configs.roles.streaming import EarlyStop
from configs.schema import Sampling
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.telemetry import Meter
from orchestrator.pools.transport import MemberDied, ValueLost
from orchestrator.samples.buffer import Batch, Buffer, Scored
from orchestrator.samples.flow import Block, Flow
from orchestrator.samples.leases import Lease, Leases, Ticket
from orchestrator.samples.prompts import Prompt, Prompts, taken
from orchestrator.samples.segments import Segments


@dataclass(slots=True, eq=False)
class _Response:
    """One attempt at a response, kept until sampling and scoring end: a late result is never credited to another
    attempt. `submitted`: seconds of the monotonic clock; `begun`: its member has accepted it; `payloads`: of its
    segments so far; `cut`: it ends soon. A `lost` one is resampled only after it has ended, so that a member never
    writes two attempts at once."""

    uid: str
    ticket: Ticket
    prompt: Prompt
    lease: Lease
    payloads: list[Any] = field(default_factory=list)
    submitted: float = 0.0
    begun: bool = False
    cut: bool = False
    lost: bool = False
    rejected: bool = False

    @property
    def gone(self) -> bool:
        """Whether its segments are no longer wanted."""
        return self.lost or self.rejected


@dataclass
class _Work:
    """One member's leased work. Responses are `running`, by uid, until their last segment is yielded."""

    member: PoolMember
    channel: str = field(default_factory=lambda: uuid4().hex)
    running: dict[str, _Response] = field(default_factory=dict)
    left: Counter[Lease] = field(default_factory=Counter)  # running responses of each lease
    load: int = 0  # its part of the member's load
    last_activity: float = 0.0  # time of the last submission or block; seconds, monotonic clock

    def runs(self, response: _Response) -> bool:
        """Whether this attempt is still being sampled."""
        return self.running.get(response.uid) is response

    def since(self) -> float | None:
        """The time that the next block's deadline counts from; None while no block is due."""
        return self.last_activity if self.load else None


@dataclass
class Intake:
    """Collects from the members of `writers` (source -> pool). `changed` is called when there may be free slots
    or a complete batch; `skipped` is uid -> reason."""

    flow: Flow
    writers: Mapping[str, Pool]
    prompts: Prompts
    leases: Leases
    buffer: Buffer
    meter: Meter
    early_stop: EarlyStop | None
    notice: Callable[[str], None]
    changed: Callable[[], None]
    skipped: dict[str, str]
    segments: Segments = field(default_factory=Segments)
    _work: dict[tuple[str, int], _Work] = field(default_factory=dict)  # by source and member number
    _departures: int = 0  # members that are no longer collected from
    _changes_seen: int = -1  # count of changes at the last call of new_members

    def new_members(self) -> list[tuple[str, PoolMember]]:
        """Serving members that are not collected from yet, with their source. Scans only after members changed."""
        changes = self._departures + sum(pool.members.changes for pool in self.writers.values())
        if changes == self._changes_seen:
            return []
        self._changes_seen = changes
        return [
            (source, member)
            for source, pool in self.writers.items()
            for member in pool.members.serving()
            if (source, member.number) not in self._work
        ]

    def oldest(self, now: float) -> float:
        """Seconds since the oldest response that is being sampled was asked for; 0 without one."""
        first = (next(iter(work.running.values())) for work in self._work.values() if work.running)  # asked in order
        return max((now - response.submitted for response in first), default=0.0)

    def collect(self, source: str, member: PoolMember) -> Coroutine[Any, Any, None]:
        """Allow leases to a member. The returned coroutine collects its blocks while it lives."""
        work = self._work[source, member.number] = _Work(member)
        return self._collect(source, work)

    async def lease(self, lease: Lease, sampling: Sampling) -> None:
        """Submit a lease to its member, to be sampled as `sampling` says. Groups found guilty before a resume are
        quarantined instead."""
        guilty = {ticket.index for ticket in lease.tickets if self.leases.suspects.guilty(ticket.index)}
        for index in guilty:
            self._quarantine(index)
        work = self._work.get((lease.source, lease.member))
        tickets = [ticket for ticket in lease.tickets if ticket.index not in guilty]
        if work is None or not tickets:  # the member left or died since the grant
            self.leases.settle(lease)
            self._resample(tickets)
            self.changed()
            return
        pool = self.writers[lease.source]
        self._give(work, pool, lease, len(tickets))  # at once: or the same free slots would be leased again
        prompts = await taken(self.prompts, [ticket.index for ticket in tickets])
        if self._work.get((lease.source, lease.member)) is not work:  # the member left, and its load was taken off it
            self._resample(tickets)
            self.changed()
            return
        pairs, work.last_activity = list(zip(tickets, prompts, strict=True)), time.monotonic()
        responses = [_Response(t.uid, t, prompt, lease, submitted=work.last_activity) for t, prompt in pairs]
        work.running |= {response.uid: response for response in responses}
        with suppress(MemberDied):  # its stream raises this too
            await self.flow.submit(pool, work.member, work.channel, pairs, lease.source, sampling)
            for response in responses:
                response.begun = True

    def _give(self, work: _Work, pool: Pool, lease: Lease, responses: int) -> None:
        """Count the responses of a lease as its member's load."""
        if not work.load:
            self.meter.clock("rollout").begin()
        work.load, work.last_activity = work.load + responses, time.monotonic()
        work.left[lease] += responses
        pool.add_load(work.member, responses)

    async def _collect(self, source: str, work: _Work) -> None:
        pool, died = self.writers[source], False
        try:
            async with asyncio.TaskGroup() as blocks:
                with suppress(ValueLost):  # a header is lost: its responses stay running, so _close resamples them
                    try:
                        stream = self.flow.blocks(pool, work.member, work.channel, source, work.since)
                        async for block in stream:
                            self._take_in(block, source, work, blocks)
                            del block
                    except MemberDied:
                        died = True
                    except asyncio.CancelledError as end:
                        clear_frames(end.__traceback__)  # the frames would keep the last block alive
                        raise
                self._close(source, work, died)
        finally:
            self._free(source, work, work.load)

    def _take_in(self, block: Block, source: str, work: _Work, scoring: asyncio.TaskGroup) -> None:
        work.last_activity = time.monotonic()
        self._free(source, work, sum(s.last for s in block.samples))
        responses = self._select(block, work)
        scoring.create_task(self._score_and_buffer(_selected(block, responses), work, responses))
        self.changed()

    def _free(self, source: str, work: _Work, places: int) -> None:
        work.load -= places
        self.writers[source].remove_load(work.member, places)
        if places and not work.load:
            self.meter.clock("rollout").end()

    def _close(self, source: str, work: _Work, died: bool) -> None:
        """Stop collecting from a member, and resample its running responses."""
        del self._work[source, work.member.number]
        self._departures += 1
        lost = [response for response in work.running.values() if not response.rejected]
        work.running.clear()
        for response in lost:
            response.lost = True
            self.segments.forget(response.uid)
        for lease in work.left:
            self.leases.settle(lease)
        implicated = self._implicated(lost, work.member.node, died)
        self._resample((response.ticket for response in lost), died, implicated)
        self.changed()

    def _implicated(self, lost: Iterable[_Response], node: str | None, died: bool) -> set[int]:
        """The groups that may have caused a member's death: those begun, unless the death has its node as its cause."""
        nodes, now = self.leases.suspects.nodes, time.monotonic()
        groups = {r.ticket.index for r in lost if r.begun and nodes.implicates(node, r.submitted, now)}
        if died:
            nodes.note(node, now)
        return groups

    async def _score_and_buffer(self, block: Block, work: _Work, responses: Mapping[str, _Response]) -> None:
        """Score, reward and buffer the responses of a block. Resample them if the payload is lost; cut those that are
        rejected or meet the early-stop rule."""
        try:
            good, rejected = await self.flow.score_and_reward(block, {uid: r.prompt for uid, r in responses.items()})
        except ValueLost:
            self._lose(responses.values(), work)
            self.changed()
            await self._cut(block.source, work, responses.values())
        else:
            good = [part for part in good if not responses[part.header.uid].gone]
            for part in good:
                if whole := self.segments.join(part):
                    self.buffer.add(whole)
            bad = [r for uid, r in responses.items() if uid in rejected and not r.gone]
            for response in bad:
                self._reject(response, rejected[response.uid])
            to_cut = (responses[p.header.uid] for p in good if self.segments.should_cut(p.header, self.early_stop))
            cut = [response for response in to_cut if not response.cut]
            for response in cut:
                response.cut = True
            self.meter.count("samples_cut", len(cut))
            self.changed()  # before the cut: a batch may be complete
            await self._cut(block.source, work, bad + cut)

    def skip(self, uid: str, reason: str) -> None:
        """Drop a bad sample, and report its reason. It is not resampled."""
        self.buffer.drop(uid, reason)
        self.skipped[uid] = reason
        self.notice(f"skipped {uid}: {reason}")
        self.meter.count("samples_dropped", 1)

    def requeue(self, batch: Batch, lost: Container[str]) -> None:
        """Put a batch back in the buffer, and resample its `lost` uids, whose payloads are gone."""
        self.buffer.give_back(batch, lost)
        self._resample(_ticket(s.header) for s in batch.samples if s.header.uid in lost)
        self.changed()

    def _select(self, block: Block, work: _Work) -> dict[str, _Response]:
        """The wanted responses of a block, by uid. Ends those whose last segment it holds, and resamples lost ones."""
        known = [(s, work.running[s.uid]) for s in block.samples if s.uid in work.running]
        ended = [response for sample, response in known if sample.last]
        for response in ended:
            self._end(response, work)
        self._resample(response.ticket for response in ended if response.lost)
        self._lose([r for s, r in known if s.finish == "abort"], work)  # rollout.on_update: abort
        return {response.uid: response for _, response in known if not response.gone}

    def _lose(self, responses: Iterable[_Response], work: _Work) -> None:
        """Mark responses as lost, and resample those that have ended."""
        lost = [response for response in responses if not response.gone]
        for response in lost:
            response.lost = True
            self.segments.forget(response.uid)
        self._resample(response.ticket for response in lost if not work.runs(response))

    def _reject(self, response: _Response, reason: str) -> None:
        response.rejected = True
        self.segments.forget(response.uid)
        self.skip(response.uid, reason)

    def _end(self, response: _Response, work: _Work) -> None:
        """Remove a response from the running ones, and settle its lease with the last of them."""
        del work.running[response.uid]
        lease = response.lease
        work.left[lease] -= 1
        if not work.left[lease]:
            del work.left[lease]
            self.leases.settle(lease)

    async def _cut(self, source: str, work: _Work, responses: Iterable[_Response]) -> None:
        """Cut those responses that are still being sampled."""
        pool, running = self.writers[source], sorted(r.uid for r in responses if work.runs(r))
        if running and work.member in pool.members:
            with suppress(MemberDied):  # its death ends them too
                await pool.call_member(work.member, "cut", running)

    def resample_aged(self, aged: Sequence[Scored]) -> None:
        """Resample samples past the staleness bound."""
        self._resample(_ticket(s.header) for s in aged)
        self.meter.count("samples_aged", len(aged))
        self.meter.count("tokens_aged", sum(s.header.response_tokens for s in aged))
        if aged:
            self.changed()

    def _resample(
        self, tickets: Iterable[Ticket], died: bool = False, implicated: AbstractSet[int] | None = None
    ) -> None:
        """Queue lost tickets again, and quarantine guilty groups; `died`, `implicated` as in Leases.lose."""
        lost = list(tickets)
        guilty = self.leases.lose(lost, died, implicated)
        for index in guilty:
            self._quarantine(index)
        for ticket in lost:
            if ticket.index not in guilty:
                self.writers[self.leases.source(ticket.index)].retries += 1

    def _quarantine(self, index: int) -> None:
        """Skip a guilty group's missing samples, so that no batch waits for them. Those it has are trained."""
        for uid in self.buffer.missing(index):
            self.skip(uid, quarantined(self.writers[self.leases.source(index)].role))


def _selected(block: Block, responses: Mapping[str, _Response]) -> Block:
    """The block with its wanted samples only, and the earlier payloads of responses that go on."""
    samples = tuple(s for s in block.samples if s.uid in responses)
    earlier = {s.uid: tuple(responses[s.uid].payloads) for s in samples if s.start and not s.last}
    for sample in samples:
        if not sample.last:  # the last row holds them all
            responses[sample.uid].payloads.append(block.payload)
    return replace(block, samples=samples, earlier=earlier)


def _ticket(header: SampleHeader) -> Ticket:
    return Ticket.of(header.uid, header.attempt)


def quarantined(role: str) -> str:
    """The skip reason of a sample whose prompt kills its members."""
    return f"quarantined: {DEATHS} members of {role} died of it"
