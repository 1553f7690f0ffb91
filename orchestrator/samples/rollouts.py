"""Rolling out: collect from members that joined, and lease prompt groups to members with free slots.

A stage and an evaluation each own one. `Leases` decides what is leased, and leased again after a loss (leases.py);
`Intake` collects the responses (intake.py); `Buffer` holds the samples until a batch is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from configs.schema import EarlyStop, Recipe, Sampling
from orchestrator.pools.pool import Pool
from orchestrator.pools.telemetry import Meter
from orchestrator.samples.buffer import Batch, Buffer
from orchestrator.samples.flow import Flow
from orchestrator.samples.intake import Intake
from orchestrator.samples.leases import FreeSlots, Leases, free_slots
from orchestrator.samples.prompts import Prompts


@dataclass
class Rollouts:
    """`writers` are the pools that write responses, by source; `skipped` is uid -> reason."""

    recipe: Recipe
    flow: Flow
    writers: Mapping[str, Pool]
    prompts: Prompts
    leases: Leases
    buffer: Buffer
    meter: Meter
    notice: Callable[[str], None]
    skipped: dict[str, str]
    early_stop: EarlyStop | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # there may be free slots, or a complete batch

    def __post_init__(self) -> None:
        engines = {"student": self.recipe.rollout, "teacher": self.recipe.teacher_rollout}
        self._slots = {
            (source, kind): engine.of_kind(kind).max_concurrent
            for source, engine in engines.items()
            for kind in ("", *engine.kinds)
        }
        self.intake = Intake(
            self.flow,
            self.writers,
            self.prompts,
            self.leases,
            self.buffer,
            self.meter,
            self.early_stop,
            self.notice,
            self.changed.set,
            self.skipped,
        )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile `changed` is set whenever a member joins, goes or answers."""
        pools = (*self.writers.values(), *self.flow.scorers())
        for pool in pools:
            pool.listeners.append(self.changed.set)
        try:
            yield
        finally:
            for pool in pools:
                pool.listeners.remove(self.changed.set)

    def lease_out(
        self, tasks: asyncio.TaskGroup, step: int, version: int | None, sampling: Sampling, until: int | None = None
    ) -> None:
        """Lease what may be leased after `step` steps to members that serve `version`, sampled by `sampling`. Groups
        of steps beyond `until` wait; without a version nothing is leased. Raises RoleFailed."""
        for pool in (*self.writers.values(), *self.flow.scorers()):
            pool.members.check()
        self.changed.clear()
        for source, member in self.intake.new_members():
            tasks.create_task(self.intake.collect(source, member))
        if version is None or not self.leases.has_work(step, until):  # most changes make no work
            return
        for lease in self.leases.grant(step, self.free_slots(version), until):
            for index in {ticket.index for ticket in lease.tickets}:
                self.buffer.open(index, version)
            tasks.create_task(self.intake.lease(lease, sampling))

    async def batch(self, version: int) -> Batch:
        """Wait for the batch of a step from the weights of `version`."""
        while True:
            self.changed.clear()
            if batch := self.buffer.next_batch(version):
                return batch
            await self.changed.wait()

    def free_slots(self, version: int) -> dict[str, dict[int, FreeSlots]]:
        """Of members that serve a version, by source and member; none while the scorers are congested."""
        if self.flow.congested():
            return {}
        return {
            source: {
                m.number: free_slots(self._slots.get((source, m.kind), self.recipe.samples_per_step), m.load)
                for m in pool.members.serving()
                if m.version == version
            }
            for source, pool in self.writers.items()
        }
