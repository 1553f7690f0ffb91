"""Evaluations of a run: before, during and after training."""

from __future__ import annotations

from pathlib import Path

from configs.schema import Recipe
from objectives.schedule import Dials, dials_at
from orchestrator.between_steps.observer import Observer
from orchestrator.evaluate import Evaluation, Found, compared
from orchestrator.pools.telemetry import Meter
from orchestrator.progress import Progress
from orchestrator.stopping import Stopping
from orchestrator.weights.roles import Roles


class Measurements:
    """`meter` is the evaluations' own: they count in no step's metrics."""

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        progress: Progress,
        roles: Roles,
        evaluation: Evaluation,
        meter: Meter,
        observer: Observer,
    ) -> None:
        self._recipe = recipe
        self._directory = directory
        self._progress = progress
        self._roles = roles
        self._evaluation = evaluation
        self._meter = meter
        self._observer = observer

    async def before(self) -> None:
        """The evaluation before training, unless a checkpoint has it."""
        progress = self._progress
        if progress.evaluations["before"] is None:
            progress.before = await self.evaluate("before")
            if progress.before:
                await self._answer_greedily("before")
            progress.evaluations["before"] = dict(progress.before.means) if progress.before else None

    async def after_step(self, stopping: Stopping) -> None:
        """The evaluation that is due after a step, unless a checkpoint has it. Raises StopAsked; a resume makes it."""
        progress, step, every = self._progress, self._progress.step, self._recipe.evaluate.every
        measured = any(line["step"] == step for line in progress.evaluations["steps"])
        last = step == self._recipe.run.steps or progress.ended_early
        if step and every and step % every == 0 and not last and not measured:
            found = await stopping.unless_asked(self.evaluate(f"step {step}"))
            progress.evaluations["steps"] += [{"step": step, **found.means}] if found else []

    async def after(self) -> None:
        """The evaluation after training. Both are reduced to the samples that both scored."""
        before, after = self._progress.before, await self.evaluate("after")
        if after:
            await self._answer_greedily("after")
        evaluations = self._progress.evaluations
        evaluations["after"] = dict(after.means) if after else None
        if before and after and before.each.keys() != after.each.keys():
            evaluations["before"], evaluations["after"] = compared(before, after)
            self._observer.notice(
                f"before and after are compared on the {len(before.each.keys() & after.each.keys())} held-out samples "
                f"that were scored both times; before: {len(before.each)}, after: {len(after.each)}"
            )

    async def evaluate(self, when: str) -> Found | None:
        """Evaluate and record the samples. None without held-out prompts, or if no sample could be scored."""
        if not self._evaluation.prompts:
            return None
        self._observer.phase(f"evaluating on {self._evaluation.prompts} held-out prompts ({when})")
        with self._meter.clock("evaluation").busy():
            found = await self._measure(self._directory / "samples" / f"eval_{when.replace(' ', '_')}", None)
        self._observer.evaluated(when, found and found.means)
        return found

    async def unrecorded(self, cap: int) -> Found | None:
        """Evaluate responses of up to `cap` tokens; nothing is recorded."""
        return await self._measure(None, cap)

    async def _measure(self, record: Path | None, cap: int | None) -> Found | None:
        await self._roles.pull()
        return await self._evaluation.run(self._progress.version, self._dials, record, cap)

    async def _answer_greedily(self, when: str) -> None:
        """Record the few answers that a person is shown. They are greedy; an evaluation's are sampled."""
        record = self._directory / "samples" / f"eval_{when}_greedy"
        with self._meter.clock("evaluation").busy():
            await self._evaluation.answer_greedily(self._progress.version, self._dials, record)

    @property
    def _dials(self) -> Dials:
        return dials_at(self._recipe.objective, max(1, self._progress.step), self._progress.beta)
