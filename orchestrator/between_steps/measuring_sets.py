"""Evaluations of a run's held-out sets: before, during and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from configs.schema import Recipe
from objectives.schedule import dials_at
from orchestrator import checkpoint
from orchestrator.between_steps.moving import Movement
from orchestrator.between_steps.observer import Observer
from orchestrator.between_steps.together import together
from orchestrator.evaluation.sets import Sets
from orchestrator.pools.telemetry import Meter
from orchestrator.progress import Progress
from orchestrator.stopping import Stopping
from orchestrator.uninterrupted import uninterrupted
from orchestrator.weights.roles import Roles


@dataclass
class SetMeasurements:
    """`meter` is the evaluations' own. A result goes to the progress, to metrics.jsonl and to the observer."""

    recipe: Recipe
    directory: Path
    progress: Progress
    roles: Roles
    sets: Sets
    meter: Meter
    observer: Observer
    movement: Movement

    async def before(self) -> None:
        """The evaluations before training, unless a checkpoint has them."""
        missing = [name for name in self.recipe.evaluate.sets if self._of(name)["before"] is None]
        for name, line in (await self.measure(missing, "before")).items():
            self._of(name)["before"] = line

    async def after_step(self, stopping: Stopping, last: bool) -> None:
        """The evaluations that are due after a step, unless a checkpoint has them; after the `last` none is. Raises
        StopAsked; a resume makes them."""
        step = self.progress.step
        due = [name for name in self.recipe.evaluate.sets if not last and self._is_due(name, step)]
        for name, line in (await stopping.unless_asked(self.measure(due, f"step {step}"))).items():
            self._of(name)["steps"] += [{"step": step, **line}] if line else []

    async def after(self) -> None:
        """The evaluations after training."""
        for name, line in (await self.measure(list(self.recipe.evaluate.sets), "after")).items():
            self._of(name)["after"] = line

    async def measure(self, names: Sequence[str], when: str) -> dict[str, dict[str, Any] | None]:
        """The line of each set. All are sampled at once, so that members wait for the last response of all alone, and
        not of each; where members take turns with the learner, one after the other."""
        if not names:
            return {}
        self.observer.phase(f"evaluating on {', '.join(names)} ({when})")
        await self.roles.pull()
        with self.meter.clock("evaluation").busy():
            works = [partial(self._measured, name, when) for name in names]
            lines = await together(works, in_turns=self.recipe.colocate)
            await self.movement.note()
        for name, line in zip(names, lines, strict=True):
            await self._tell(name, when, line)
        return dict(zip(names, lines, strict=True))

    async def _measured(self, name: str, when: str) -> dict[str, Any] | None:
        progress = self.progress
        dials = dials_at(self.recipe.objective, max(1, progress.step), progress.beta)
        record = self.directory / "samples" / f"eval_{when.replace(' ', '_')}_{name}"
        return await self.sets.measure(name, progress.version, dials, record)

    async def _tell(self, name: str, when: str, line: dict[str, Any] | None) -> None:
        if line:
            whole = {"evaluation": name, "when": when, "after_step": self.progress.step, **line}
            await uninterrupted(checkpoint.append_line, self.directory, whole)
        self.observer.evaluated(when, line, name)

    def _is_due(self, name: str, step: int) -> bool:
        every = self.recipe.evaluate.every_of(name)
        measured = any(line["step"] == step for line in self._of(name)["steps"])
        return bool(step and every and step % every == 0 and not measured)

    def _of(self, name: str) -> dict[str, Any]:
        return self.progress.evaluations["sets"].setdefault(name, {"before": None, "steps": [], "after": None})
