"""One turn of rolling out: whoever joined is attended to, and members with room are leased prompt groups.

A stage and an evaluation each own one. Both go the same way: dispatch grants, intake brings in, the buffer holds.
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
from orchestrator.samples.dispatch import Dispatch, Room, room_for
from orchestrator.samples.flow import Flow
from orchestrator.samples.intake import Intake
from orchestrator.samples.prompts import Prompts


@dataclass
class Leasing:
    """`writers` are the pools that write responses, by source; `skipped` is uid -> why it was not taken in."""

    recipe: Recipe
    flow: Flow
    writers: Mapping[str, Pool]
    prompts: Prompts
    dispatch: Dispatch
    buffer: Buffer
    meter: Meter
    notice: Callable[[str], None]
    skipped: dict[str, str]
    early_stop: EarlyStop | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # there may be room, or a batch may be whole

    def __post_init__(self) -> None:
        self.intake = Intake(
            self.flow,
            self.writers,
            self.prompts,
            self.dispatch,
            self.buffer,
            self.meter,
            self.early_stop,
            self.notice,
            self.moved.set,
            self.skipped,
        )

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Meanwhile `moved` is set whenever a member comes, goes or answers."""
        pools = (*self.writers.values(), *self.flow.scorers())
        for pool in pools:
            pool.listeners.append(self.moved.set)
        try:
            yield
        finally:
            for pool in pools:
                pool.listeners.remove(self.moved.set)

    def turn(
        self, tasks: asyncio.TaskGroup, step: int, version: int | None, sampling: Sampling, until: int | None = None
    ) -> None:
        """Lease what may be leased after `step` steps to members that serve `version`: responses drawn by `sampling`.
        Groups of steps beyond `until` wait; without a version all do. Raises RoleFailed where a role is at its end."""
        for pool in (*self.writers.values(), *self.flow.scorers()):
            pool.members.check()
        self.moved.clear()
        for source, member in self.intake.new_members():
            tasks.create_task(self.intake.attend(source, member))
        if version is None or not self.dispatch.wants_room(step, until):  # most of what moves makes room for nothing
            return
        for lease in self.dispatch.grant(step, self.room(version), until):
            for index in {ticket.index for ticket in lease.tickets}:
                self.buffer.open(index, version)
            tasks.create_task(self.intake.lease(lease, sampling))

    async def batch(self, version: int) -> Batch:
        """The next batch of a step from the weights of `version`, once it is whole."""
        while True:
            self.moved.clear()
            if batch := self.buffer.next_batch(version):
                return batch
            await self.moved.wait()

    def room(self, version: int) -> dict[str, dict[int, Room]]:
        """Room on members that serve a version, unless the scorers have more waiting than they may."""
        if self.flow.congested():
            return {}
        slots = {"student": self.recipe.rollout.max_concurrent, "teacher": self.recipe.teacher_rollout.max_concurrent}
        return {
            source: {
                m.number: room_for(slots.get(source, self.recipe.samples_per_step), m.load)
                for m in pool.members.serving()
                if m.version == version
            }
            for source, pool in self.writers.items()
        }
