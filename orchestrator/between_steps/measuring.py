"""Evaluations of a run: before, during and after training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs.schema import Recipe
from objectives.schedule import Dials, dials_at
from orchestrator.between_steps.measuring_sets import SetMeasurements
from orchestrator.between_steps.observer import Observer
from orchestrator.evaluation.heldout import Evaluation, Found, compared
from orchestrator.pools.telemetry import Meter
from orchestrator.progress import Progress
from orchestrator.stopping import Stopping
from orchestrator.weights.roles import Roles


@dataclass
class Measurements:
    """`meter` is the evaluations' own: they count in no step's metrics."""

    recipe: Recipe
    directory: Path
    progress: Progress
    roles: Roles
    evaluation: Evaluation
    meter: Meter
    observer: Observer
    sets: SetMeasurements

    async def before(self) -> None:
        """The evaluation before training, unless a checkpoint has it."""
        progress = self.progress
        if progress.evaluations["before"] is None:
            progress.before = await self.evaluate("before")
            if progress.before:
                await self._answer_greedily("before")
            progress.evaluations["before"] = dict(progress.before.means) if progress.before else None
        await self.sets.before()

    async def after_step(self, stopping: Stopping) -> None:
        """The evaluation that is due after a step, unless a checkpoint has it. Raises StopAsked; a resume makes it."""
        progress, step, every = self.progress, self.progress.step, self.recipe.evaluate.every
        measured = any(line["step"] == step for line in progress.evaluations["steps"])
        last = step == self.recipe.run.steps or progress.ended_early
        if step and every and step % every == 0 and not last and not measured:
            found = await stopping.unless_asked(self.evaluate(f"step {step}"))
            progress.evaluations["steps"] += [{"step": step, **found.means}] if found else []
        await self.sets.after_step(stopping, last)

    async def after(self) -> None:
        """The evaluation after training. Both are reduced to the samples that both scored."""
        before, after = self.progress.before, await self.evaluate("after")
        if after:
            await self._answer_greedily("after")
        evaluations = self.progress.evaluations
        evaluations["after"] = dict(after.means) if after else None
        if before and after and before.each.keys() != after.each.keys():
            evaluations["before"], evaluations["after"] = compared(before, after)
            self.observer.notice(
                f"before and after are compared on the {len(before.each.keys() & after.each.keys())} held-out samples "
                f"that were scored both times; before: {len(before.each)}, after: {len(after.each)}"
            )
        await self.sets.after()

    async def evaluate(self, when: str) -> Found | None:
        """Evaluate and record the samples. None without held-out prompts, or if no sample could be scored."""
        if not self.evaluation.prompts:
            return None
        self.observer.phase(f"evaluating on {self.evaluation.prompts} held-out prompts ({when})")
        with self.meter.clock("evaluation").busy():
            found = await self._measure(self.directory / "samples" / f"eval_{when.replace(' ', '_')}", None)
            await self.sets.movement.note()
        self.observer.evaluated(when, found and found.means)
        return found

    async def unrecorded(self, cap: int) -> Found | None:
        """Evaluate responses of up to `cap` tokens; nothing is recorded."""
        return await self._measure(None, cap)

    async def _measure(self, record: Path | None, cap: int | None) -> Found | None:
        await self.roles.pull()
        return await self.evaluation.run(self.progress.version, self._dials, record, cap)

    async def _answer_greedily(self, when: str) -> None:
        """Record the few answers that a person is shown. They are greedy; an evaluation's are sampled."""
        record = self.directory / "samples" / f"eval_{when}_greedy"
        with self.meter.clock("evaluation").busy():
            await self.evaluation.answer_greedily(self.progress.version, self._dials, record)

    @property
    def _dials(self) -> Dials:
        return dials_at(self.recipe.objective, max(1, self.progress.step), self.progress.beta)
