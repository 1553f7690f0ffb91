"""Leases and buffer at the pace of a long run: where rollouts can sample more than is trained, nobody is waited for.

A clock of its own; its unit is a learner step.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from statistics import NormalDist

import pytest

from actors.wire.records import SampleHeader
from orchestrator.samples.buffer import DROPS, Buffer, Scored
from orchestrator.samples.leases import FreeSlots, Leases, Ticket

GROUPS, EACH, BOUND, STEPS = 32, 4, 16, 600
MEDIAN, SPREAD, LONGEST = 2.0, 0.8, 20.0  # steps that a response takes: log-normal, and sometimes more than the bound
EXCESS = 1.2  # what the rollouts can sample, to what the learner takes


def duration(ticket: Ticket) -> float:
    uniform = (ticket.seed(0) % 2**32 + 0.5) / 2**32
    return min(LONGEST, MEDIAN * math.exp(SPREAD * NormalDist().inv_cdf(uniform)))


class Course:
    """A run of leases and buffer, up to its last leases. `waits` are those of the learner, once the pipeline is full,
    `leased` the responses that were sampled."""

    def __init__(self, on_stale: str) -> None:
        self.leases = Leases(GROUPS, EACH, BOUND, STEPS)
        self.buffer = Buffer(GROUPS, EACH, BOUND, on_stale)
        self.slots = int(EXCESS * MEDIAN * math.exp(SPREAD**2 / 2) * GROUPS * EACH)
        self.running: list[tuple[float, Ticket]] = []  # by when they end
        self.now, self.version, self.leased = 0.0, 0, 0
        self.waits: list[float] = []

    def go(self) -> None:
        free_from = 0.0
        while self.version < STEPS - BOUND:
            self.lease()
            aged = self.buffer.expire(self.version)
            self.leases.lose(Ticket.of(s.header.uid, s.header.attempt) for s in aged)
            if aged:
                continue
            if self.now >= free_from and self.buffer.next_batch(self.version):
                if self.version > BOUND:
                    self.waits.append(self.now - free_from)
                self.version, free_from = self.version + 1, self.now + 1.0
            elif self.now < free_from <= self.running[0][0]:
                self.now = free_from
            else:
                self.end_one()

    def lease(self) -> None:
        free = FreeSlots(self.slots - len(self.running), not self.running)
        for lease in self.leases.grant(self.version, {"student": {0: free}}):
            for ticket in lease.tickets:
                self.buffer.open(ticket.index, self.version)
                heappush(self.running, (self.now + duration(ticket), ticket))
                self.leased += 1

    def end_one(self) -> None:
        self.now, ticket = heappop(self.running)
        versions = ((self.version, 1),)
        header = SampleHeader(ticket.uid, ticket.group, ticket.attempt, 1, 1, 1, "stop", versions)
        self.buffer.add(Scored(header, None))


@pytest.mark.parametrize("on_stale", ["mask_tokens", "drop"])
def test_responses_that_take_longer_than_the_bound_hold_up_no_step(on_stale: str) -> None:
    course = Course(on_stale)
    course.go()
    assert course.buffer.drops, "some are sampled again"
    assert max(course.buffer.drops.values()) <= DROPS, "and none so often that the learner would wait"
    assert not any(course.waits)
