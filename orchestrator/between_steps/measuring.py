"""Evaluations of a run: before, during and after training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs.schema import Recipe
from objectives.schedule import Dials, dials_at
from orchestrator.between_steps.measuring_sets import SetMeasurements
from orchestrator.between_steps.observer import Observer
from orchestrator.between_steps.together import together
from orchestrator.evaluation.heldout import Evaluation, Found, compared
from orchestrator.pools.telemetry import Meter
from orchestrator.progress import Progress
from orchestrator.stopping import Stopping
from orchestrator.weights.roles import Roles


@dataclass
class Measurements:
    """`meter` is the evaluations' own: they count in no step's metrics. data.heldout is evaluated beside the sets, so
    that members wait for the last response of all alone; its greedy answers come later: they have its uids."""

    recipe: Recipe
    directory: Path
    progress: Progress
    roles: Roles
    evaluation: Evaluation
    meter: Meter
    observer: Observer
    sets: SetMeasurements

    async def before(self) -> None:
        """The evaluations before training, unless a checkpoint has them."""
        await together([self._before, self.sets.before], in_turns=self.recipe.colocate)

    async def after_step(self, stopping: Stopping) -> None:
        """The evaluations that are due after a step, unless a checkpoint has them. Raises StopAsked; a resume makes
        them."""
        last = self.progress.step == self.recipe.run.steps or self.progress.ended_early
        works = [partial(self._after_step, stopping, last), partial(self.sets.after_step, stopping, last)]
        await together(works, in_turns=self.recipe.colocate)

    async def after(self) -> None:
        """The evaluations after training."""
        await together([self._after, self.sets.after], in_turns=self.recipe.colocate)

    async def _before(self) -> None:
        progress = self.progress
        if progress.evaluations["before"] is None:
            progress.before = await self.evaluate("before")
            if progress.before:
                await self._answer_greedily("before")
            progress.evaluations["before"] = dict(progress.before.means) if progress.before else None

    async def _after_step(self, stopping: Stopping, last: bool) -> None:
        progress, step, every = self.progress, self.progress.step, self.recipe.evaluate.every
        measured = any(line["step"] == step for line in progress.evaluations["steps"])
        if step and every and step % every == 0 and not last and not measured:
            found = await stopping.unless_asked(self.evaluate(f"step {step}"))
            progress.evaluations["steps"] += [{"step": step, **found.means}] if found else []

    async def _after(self) -> None:
        """The one before and this one are reduced to the samples that both scored."""
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
