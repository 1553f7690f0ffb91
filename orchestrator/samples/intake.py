"""What leases bring in: blocks are judged as they come, segments joined, samples admitted to the buffer.

Nothing that was asked for is forgotten: what dies with a member, is lost with a node or grows too old is leased again;
what cannot be trained is skipped, by name and with its reason.
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
from configs.roles import EarlyStop
from configs.schema import Sampling
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.suspects import DEATHS
from orchestrator.pools.telemetry import Meter
from orchestrator.pools.transport import MemberDied, ValueLost
from orchestrator.samples.buffer import Batch, Buffer, Scored
from orchestrator.samples.dispatch import Dispatch, Lease, Ticket
from orchestrator.samples.flow import Block, Flow
from orchestrator.samples.prompts import Prompt, Prompts
from orchestrator.samples.segments import Segments


@dataclass(slots=True, eq=False)
class _Response:
    """One attempt at a response. It is known as long as it runs or a block of it is being judged: what is said late of
    it is said of no other attempt. It was `asked` for then, and has `begun` once its member has said so. `payloads`
    hold the segments that came of it. One that is `cut` will end soon. Of one that is `gone`, `lost` or `rejected`, no
    segment is wanted. What is lost is leased again when it has ended, so that no member ever writes two attempts at
    once."""

    uid: str
    ticket: Ticket
    prompt: Prompt
    lease: Lease
    payloads: list[Any] = field(default_factory=list)
    asked: float = 0.0
    begun: bool = False
    cut: bool = False
    lost: bool = False
    rejected: bool = False

    @property
    def gone(self) -> bool:
        return self.lost or self.rejected


@dataclass
class _Wanted:
    """What is wanted of one member: responses are `running`, by uid, until their last segment is yielded."""

    member: PoolMember
    channel: str = field(default_factory=lambda: uuid4().hex)
    running: dict[str, _Response] = field(default_factory=dict)
    left: Counter[Lease] = field(default_factory=Counter)  # how many of a lease are running
    places: int = 0  # of the member's load
    heard: float = 0.0  # when it was last asked for something, or yielded

    def runs(self, response: _Response) -> bool:
        """Whether this very attempt is still being sampled."""
        return self.running.get(response.uid) is response

    def since(self) -> float | None:
        """From when on it owes something."""
        return self.heard if self.places else None


@dataclass
class Intake:
    """`moved` is called when there may be room for a lease, or a batch may be whole; `skipped` is uid -> reason."""

    flow: Flow
    writers: Mapping[str, Pool]
    prompts: Prompts
    dispatch: Dispatch
    buffer: Buffer
    meter: Meter
    early_stop: EarlyStop | None
    notice: Callable[[str], None]
    moved: Callable[[], None]
    skipped: dict[str, str]
    segments: Segments = field(default_factory=Segments)
    _attended: dict[tuple[str, int], _Wanted] = field(default_factory=dict)
    _departures: int = 0  # how often a member was attended to no longer
    _looked_at: int = -1  # what had changed when members were last looked at

    def new_members(self) -> list[tuple[str, PoolMember]]:
        """Serving members, with their source, that nobody attends to yet. They are looked at when some may be others
        than before, and not whenever anything moves."""
        changes = self._departures + sum(pool.members.changes for pool in self.writers.values())
        if changes == self._looked_at:
            return []
        self._looked_at = changes
        return [
            (source, member)
            for source, pool in self.writers.items()
            for member in pool.members.serving()
            if (source, member.number) not in self._attended
        ]

    def attend(self, source: str, member: PoolMember) -> Coroutine[Any, Any, None]:
        """From now on the member may be leased to; the coroutine takes in what it yields, as long as it lives."""
        wanted = self._attended[source, member.number] = _Wanted(member)
        return self._attend(source, wanted)

    async def lease(self, lease: Lease, sampling: Sampling) -> None:
        """Ask a member for responses drawn by `sampling`; of a prompt that was found guilty before a resume, none."""
        guilty = {ticket.index for ticket in lease.tickets if self.dispatch.suspects.guilty(ticket.index)}
        for index in guilty:
            self._quarantine(index)
        wanted = self._attended.get((lease.source, lease.member))
        tickets = [ticket for ticket in lease.tickets if ticket.index not in guilty]
        if wanted is None or not tickets:  # it left or died between the grant and this turn
            self.dispatch.settle(lease)
            self._sample_again(tickets)
            self.moved()
            return
        if not wanted.places:
            self.meter.clock("rollout").begin()
        pairs = [(ticket, self.prompts[ticket.index]) for ticket in tickets]
        wanted.places, wanted.heard = wanted.places + len(pairs), time.monotonic()
        asked = [_Response(t.uid, t, prompt, lease, asked=wanted.heard) for t, prompt in pairs]
        wanted.running |= {response.uid: response for response in asked}
        wanted.left[lease] += len(pairs)
        pool = self.writers[lease.source]
        pool.add_load(wanted.member, len(pairs))
        with suppress(MemberDied):  # its stream tells
            await self.flow.submit(pool, wanted.member, wanted.channel, pairs, lease.source, sampling)
            for response in asked:
                response.begun = True

    async def _attend(self, source: str, wanted: _Wanted) -> None:
        pool, died = self.writers[source], False
        try:
            async with asyncio.TaskGroup() as blocks:
                with suppress(ValueLost):  # of a header; what it told of is still open
                    try:
                        stream = self.flow.blocks(pool, wanted.member, wanted.channel, source, wanted.since)
                        async for block in stream:
                            self._take_in(block, source, wanted, blocks)
                            del block
                    except MemberDied:
                        died = True
                    except asyncio.CancelledError as end:
                        clear_frames(end.__traceback__)  # they would hold the last block until they are collected
                        raise
                self._let_go(source, wanted, died)
        finally:
            self._free(source, wanted, wanted.places)

    def _take_in(self, block: Block, source: str, wanted: _Wanted, scoring: asyncio.TaskGroup) -> None:
        wanted.heard = time.monotonic()
        self._free(source, wanted, sum(s.last for s in block.samples))
        responses = self._select(block, wanted)
        scoring.create_task(self._bring_in(_selected(block, responses), wanted, responses))
        self.moved()

    def _free(self, source: str, wanted: _Wanted, places: int) -> None:
        wanted.places -= places
        self.writers[source].remove_load(wanted.member, places)
        if places and not wanted.places:
            self.meter.clock("rollout").end()

    def _let_go(self, source: str, wanted: _Wanted, died: bool) -> None:
        """A member yields no more: what it still owed is leased again."""
        del self._attended[source, wanted.member.number]
        self._departures += 1
        owed = [response for response in wanted.running.values() if not response.rejected]
        wanted.running.clear()
        for response in owed:
            response.lost = True
            self.segments.forget(response.uid)
        for lease in wanted.left:
            self.dispatch.settle(lease)
        self._sample_again((response.ticket for response in owed), died, self._told(owed, wanted.member.node, died))
        self.moved()

    def _told(self, owed: Iterable[_Response], node: str | None, died: bool) -> set[int]:
        """The groups of which a member's death says something."""
        nodes, now = self.dispatch.suspects.nodes, time.monotonic()
        told = {r.ticket.index for r in owed if r.begun and nodes.tells(node, r.asked, now)}
        if died:
            nodes.note(node, now)
        return told

    async def _bring_in(self, block: Block, wanted: _Wanted, responses: Mapping[str, _Response]) -> None:
        """Score, reward and admit the responses of a block. What went down with a node is sampled again; one that is
        rejected, or whose target has lost the thread, is ended."""
        try:
            good, rejected = await self.flow.score_and_reward(block, {uid: r.prompt for uid, r in responses.items()})
        except ValueLost:
            self._lose(responses.values(), wanted)
            self.moved()
            await self._cut(block.source, wanted, responses.values())
        else:
            good = [part for part in good if not responses[part.header.uid].gone]
            for part in good:
                if whole := self.segments.join(part):
                    self.buffer.admit(whole)
            bad = [r for uid, r in responses.items() if uid in rejected and not r.gone]
            for response in bad:
                self._reject(response, rejected[response.uid])
            drifting = (responses[p.header.uid] for p in good if self.segments.adrift(p.header, self.early_stop))
            adrift = [response for response in drifting if not response.cut]
            for response in adrift:
                response.cut = True
            self.meter.count("samples_cut", len(adrift))
            self.moved()  # a batch may be whole: nobody waits for the cut
            await self._cut(block.source, wanted, bad + adrift)

    def skip(self, uid: str, reason: str) -> None:
        """Bad data is counted and named, and not asked for again."""
        self.buffer.drop(uid, reason)
        self.skipped[uid] = reason
        self.notice(f"skipped {uid}: {reason}")
        self.meter.count("samples_dropped", 1)

    def take_back(self, batch: Batch, lost: Container[str]) -> None:
        """A batch whose payloads are partly gone: the rest waits in the buffer, what is lost is sampled again."""
        self.buffer.give_back(batch, lost)
        self._sample_again(_ticket(s.header) for s in batch.samples if s.header.uid in lost)
        self.moved()

    def _select(self, block: Block, wanted: _Wanted) -> dict[str, _Response]:
        """The responses of a block that are wanted, by uid. Those that end with it run no longer; lost ones are leased
        again."""
        asked = [(s, wanted.running[s.uid]) for s in block.samples if s.uid in wanted.running]
        ended = [response for sample, response in asked if sample.last]
        for response in ended:
            self._ended(response, wanted)
        self._sample_again(response.ticket for response in ended if response.lost)
        self._lose([r for s, r in asked if s.finish == "abort"], wanted)  # by a weight update, if the recipe says so
        return {response.uid: response for _, response in asked if not response.gone}

    def _lose(self, responses: Iterable[_Response], wanted: _Wanted) -> None:
        """What was yielded and is lost is sampled again, under its next attempt."""
        lost = [response for response in responses if not response.gone]
        for response in lost:
            response.lost = True
            self.segments.forget(response.uid)
        self._sample_again(response.ticket for response in lost if not wanted.runs(response))

    def _reject(self, response: _Response, reason: str) -> None:
        response.rejected = True
        self.segments.forget(response.uid)
        self.skip(response.uid, reason)

    def _ended(self, response: _Response, wanted: _Wanted) -> None:
        """A response is in, or will not be; with the last of its lease the lease is over."""
        del wanted.running[response.uid]
        lease = response.lease
        wanted.left[lease] -= 1
        if not wanted.left[lease]:
            del wanted.left[lease]
            self.dispatch.settle(lease)

    async def _cut(self, source: str, wanted: _Wanted, responses: Iterable[_Response]) -> None:
        """End those responses that are still being sampled; their last segment says so."""
        pool, running = self.writers[source], sorted(r.uid for r in responses if wanted.runs(r))
        if running and wanted.member in pool.members:
            with suppress(MemberDied):  # which ends them too
                await pool.call_member(wanted.member, "cut", running)

    def lease_again(self, aged: Sequence[Scored]) -> None:
        """Samples that grew too old for the staleness bound are sampled anew."""
        self._sample_again(_ticket(s.header) for s in aged)
        self.meter.count("samples_aged", len(aged))
        self.meter.count("tokens_aged", sum(s.header.response_tokens for s in aged))
        if aged:
            self.moved()

    def _sample_again(
        self, tickets: Iterable[Ticket], died: bool = False, told: AbstractSet[int] | None = None
    ) -> None:
        """What is lost is leased again, but for prompts that kill their members; `died`, `told` as in Dispatch.lose."""
        for index in self.dispatch.lose(tickets, died, told):
            self._quarantine(index)

    def _quarantine(self, index: int) -> None:
        """What a guilty group lacks will not come, and no batch waits for it. What it has is trained."""
        for uid in self.buffer.missing(index):
            self.skip(uid, quarantined(self.writers[self.dispatch.source(index)].role))


def _selected(block: Block, responses: Mapping[str, _Response]) -> Block:
    """What is wanted of a block, with the segments before it of responses that go on."""
    samples = tuple(s for s in block.samples if s.uid in responses)
    earlier = {s.uid: tuple(responses[s.uid].payloads) for s in samples if s.start and not s.last}
    for sample in samples:
        if not sample.last:  # the last row holds them all
            responses[sample.uid].payloads.append(block.payload)
    return replace(block, samples=samples, earlier=earlier)


def _ticket(header: SampleHeader) -> Ticket:
    return Ticket.of(header.uid, header.attempt)


def quarantined(role: str) -> str:
    """The reason of a sample whose prompt kills the members that are asked for it."""
    return f"quarantined: {DEATHS} members of {role} died of it"
