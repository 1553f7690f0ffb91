"""One stage of training: the algorithm, as two loops in one event loop.

`roll_out` leases prompt groups to members, as far ahead as the staleness bound allows; each block of responses is
scored and rewarded at once. `learn` waits for a batch, updates, and publishes a version that members pull before they
sample again.

The loops share:
- the leases, which know the groups that may be leased; `learn` passes over those that nothing can be trained of;
- the buffer, which `roll_out` fills and `learn` empties; `learn` also has its outdated samples leased again;
- `rollouts.changed`, an event on which both sleep: there may be free slots, or a batch may be whole;
- the progress, which `learn` writes (step, version, ledger) and `roll_out` reads;
- the learner's turns: nothing is leased while a step runs on GPUs that learner and engines share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.wire.records import BrokenWeights
from configs.schema import Recipe, Sampling
from objectives.schedule import Dials, dials_at, fractions_at
from orchestrator.between_steps.bookkeeping import Bookkeeping
from orchestrator.pools.member import PoolMember
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.telemetry import Meter
from orchestrator.pools.transport import MemberDied
from orchestrator.progress import Progress
from orchestrator.samples.buffer import Batch, Buffer
from orchestrator.samples.dynamic_sampling import to_replace
from orchestrator.samples.flow import Flow
from orchestrator.samples.leases import Leases, source_of
from orchestrator.samples.prompts import Prompts
from orchestrator.samples.rollouts import Rollouts
from orchestrator.weights.learner_group import LearnerGroup, PayloadsLost
from orchestrator.weights.skipped_updates import named
from orchestrator.weights.versions import Versions

REJECTED_IN_A_ROW = 16  # prompt groups without a trainable sample, one after the other, that end a run


class NotFinite(Exception):
    """The learner's loss, gradients or weights are not finite, and more steps would not help."""


@dataclass
class Stage:
    """`publish(number)` makes the student's weights a version; `after_publish` brings scored models to the coming step;
    `after_step` gets each line of metrics. Recorded samples go to the folder `samples`."""

    recipe: Recipe
    pools: Pools
    flow: Flow
    learner: LearnerGroup
    versions: Versions
    prompts: Prompts
    progress: Progress
    meter: Meter
    samples: Path
    publish: Callable[[int], Awaitable[None]]
    after_publish: Callable[[], Awaitable[None]]
    after_step: Callable[[Mapping[str, Any]], Awaitable[None]]
    notice: Callable[[str], None]
    prompts_dropped: Callable[[], int] = lambda: 0

    def __post_init__(self) -> None:
        recipe, progress, writers = self.recipe, self.progress, self.pools.writers()
        self.writers = {source: writers[source] for source in recipe.objective.sources}
        self.leases = Leases(
            recipe.batch.prompts_per_step,
            recipe.batch.samples_per_prompt,
            recipe.max_staleness,
            recipe.run.steps,
            progress.ledger,
            self._source,
            progress.suspects,
            progress.passed_over(recipe.batch.prompts_per_step),
        )
        self.buffer = Buffer(
            recipe.batch.prompts_per_step,
            recipe.batch.samples_per_prompt,
            recipe.max_staleness,
            recipe.age_policy,
            scores_age="full" in recipe.objective.support_of.values(),
            drops=progress.drops,
        )
        self.rollouts = Rollouts(
            recipe,
            self.flow,
            self.writers,
            self.prompts,
            self.leases,
            self.buffer,
            self.meter,
            self.notice,
            progress.skipped,
            recipe.early_stop,
        )
        self.stopping = False
        self._bookkeeping = Bookkeeping(recipe, progress, self.meter, self.notice)
        self._rejected_in_a_row = 0  # prompt groups without a trainable sample
        self._following = False  # scored models are loading the weights of the coming step

    async def run(self) -> None:
        """Roll out and learn until the last step, or until `stop` was called and the step under way is done."""
        with self.rollouts.listening():
            async with asyncio.TaskGroup() as tasks:
                rolling = tasks.create_task(self.roll_out())
                await self.learn(tasks)
                rolling.cancel()

    async def roll_out(self) -> None:
        """Lease what capacity and free members allow; sleep until something moves."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self.rollouts.lease_out(tasks, self.progress.step, self._leasable, self._sampling, self._judged_at)
                await self.rollouts.changed.wait()

    async def learn(self, tasks: asyncio.TaskGroup) -> None:
        """Wait for a batch, update, publish; members pull while the next batch forms."""
        while self.progress.step < self.recipe.run.steps and not self.stopping:
            with self.meter.clock("wait").busy():
                batch = await self.next_batch()
            if batch is None:
                break
            with self.learner.turns.unleased():
                await self.learn_from(batch, tasks)
            del batch  # frees its payloads before the next batch is whole
            self.rollouts.changed.set()

    async def learn_from(self, batch: Batch, tasks: asyncio.TaskGroup) -> None:
        """One step and what follows it. A batch whose payloads were lost with a node goes back to the buffer.

        Raises NotFinite.
        """
        dials, cap = dials_at(self.recipe.objective, self.progress.step + 1, self.progress.beta), self._cap
        version = self.progress.version
        try:
            metrics = await self.advance(batch, dials)
        except PayloadsLost as loss:  # no rank has begun
            self.rollouts.intake.requeue(batch, loss.uids)
            return
        self._bookkeeping.stepped(batch, metrics)
        pulled = tasks.create_task(self.pull())
        if self.recipe.max_staleness == 0:
            await pulled
        metrics["prompts_dropped"] = self.prompts_dropped()
        await self.after_step(self._bookkeeping.line(batch, version, dials, metrics, cap))
        if failure := self.progress.skips.failure(self.progress.step):
            raise NotFinite(failure)

    async def next_batch(self) -> Batch | None:
        """Wait for the next batch that the staleness bound allows. None when the stage is to stop."""
        while not self.stopping:
            self.rollouts.changed.clear()
            self.rollouts.intake.resample_aged(self.buffer.expire(self.progress.version))
            batch = self.buffer.next_batch(self.progress.version)
            if batch is None:
                await self.rollouts.changed.wait()
            elif not batch.samples:
                self._pass_over(batch)
            elif silent := to_replace(self.recipe, batch.groups, self.progress.replaced):
                self._replace(batch, silent)
            else:
                return batch
        return None

    async def advance(self, batch: Batch, dials: Dials) -> dict[str, Any]:
        """Update, publish a version if the weights moved, bring scored models along. Returns the learner's metrics.

        Raises PayloadsLost, with nothing changed, and NotFinite.
        """
        progress, step = self.progress, self.progress.step + 1
        async with self.learner.turns.learner():
            with self.meter.clock("learn").busy():
                metrics = await self._update(batch, step, dials)
            if progress.skips.moved(step):
                with self.meter.clock("publish").busy(), self.meter.phase("gather").busy():
                    await self.publish(progress.version + 1)
                progress.version += 1
        progress.step, self._rejected_in_a_row = step, 0
        metrics["groups_replaced"], progress.replaced = progress.replaced, 0
        self._close(batch.groups)
        with self.meter.clock("publish").busy(), self.meter.phase("follow").busy():
            await self._follow()
        return metrics

    async def pull(self) -> None:
        """Every member that writes responses pulls. One that dies is replaced by its pool, which admits the next."""
        with self.meter.clock("publish").busy(), self.meter.phase("load").busy():
            writers = self.writers.values()
            await asyncio.gather(*(self._pull(pool, member) for pool in writers for member in pool.members.active()))
        self.rollouts.changed.set()

    async def _pull(self, pool: Pool, member: PoolMember) -> None:
        with suppress(MemberDied):  # the pool replaces it
            await self.versions.pull(pool, member)
        self.rollouts.changed.set()

    def stop(self) -> None:
        """End after the step under way, or now if there is none."""
        self.stopping = True
        self.rollouts.changed.set()

    async def _update(self, batch: Batch, step: int, dials: Dials) -> dict[str, Any]:
        """The learner's step. Notices updates that it skipped; records the samples if the recipe says so."""
        record = self.samples / f"step_{step:06d}" if step % self.recipe.record.every == 0 else None
        uids = [scored.header.uid for scored in batch.samples]
        version = self.progress.version
        try:
            metrics = await self.learner.step(batch.samples, step, version, dials, record, oldest=batch.oldest)
        except BrokenWeights as error:
            raise NotFinite(
                f"learner: {error}; the newest checkpoint is untouched. Lower learner.optimizer.lr, or set "
                f"learner.optimizer.max_grad_norm. Samples: {named(uids)}"
            ) from error
        if skipped := metrics["updates_skipped"]:
            moved = skipped < self.recipe.batch.updates
            self.notice(self.progress.skips.note(step, skipped, moved, uids))
        return metrics

    async def _follow(self) -> None:
        """Bring scored models to the weights of the coming step. Nothing is leased meanwhile: a member that joins has
        the new version already."""
        self._following = True
        try:
            await self.after_publish()
        finally:
            self._following = False

    def _pass_over(self, batch: Batch) -> None:
        """Go on without a batch of which every sample was rejected. Raises RuntimeError after REJECTED_IN_A_ROW such
        groups."""
        self._leave(batch.groups)
        self._rejected_in_a_row += len(batch.groups)
        if self._rejected_in_a_row >= REJECTED_IN_A_ROW:
            uid, reason = self.buffer.last_dropped or ("?", "unknown")
            raise RuntimeError(
                f"every sample of the last {self._rejected_in_a_row} prompt groups was rejected, e.g. {uid}: {reason}"
            )

    def _replace(self, batch: Batch, silent: Sequence[int]) -> None:
        """Leave groups without signal behind; the others wait for as many fresh ones."""
        self.buffer.give_back(replace(batch, groups={i: g for i, g in batch.groups.items() if i not in silent}), ())
        self._leave(silent)
        self.progress.replaced += len(silent)

    def _leave(self, indices: Collection[int]) -> None:
        """Go on without these groups: as many others may be leased."""
        self._close(indices)
        self.leases.pass_over(len(indices))
        self.rollouts.changed.set()

    def _close(self, indices: Collection[int]) -> None:
        """Enter groups in the ledger and forget what was counted of them."""
        self.progress.ledger = self.progress.ledger.with_done(indices)
        for index in indices:
            self.progress.drops.pop(index, None)
            self.progress.suspects.acquit(index)

    @property
    def _leasable(self) -> int | None:
        """The version that a member must serve to be leased to. None while nothing may be leased: the GPUs are the
        learner's, or scored models are loading."""
        return None if self._following or not self.learner.turns.leasing else self.progress.version

    def _source(self, index: int) -> str:
        """The source of a prompt group, drawn by the fractions of the step that will train it."""
        step = index // self.recipe.batch.prompts_per_step + 1
        return source_of(index, fractions_at(self.recipe.objective, step), self.recipe.run.seed)

    @property
    def _judged_at(self) -> int | None:
        """The step after which the length curriculum is judged next. Groups of later steps are leased only then: their
        cap, and after a rollback their weights, are not known before."""
        length, ladder = self.recipe.objective.length, self.progress.ladder
        if length is None or ladder.settled:
            return None
        return self.progress.step + length.steps_per_stage - ladder.steps

    @property
    def _sampling(self) -> Sampling:
        """The recipe's sampling, with the length curriculum's cap."""
        return self.recipe.sampling.model_copy(update={"max_response_tokens": self._cap})

    @property
    def _cap(self) -> int:
        """Tokens of a response, at most."""
        length = self.recipe.objective.length
        return self.progress.ladder.cap(length) if length else self.recipe.sampling.max_response_tokens
