"""`logratio evaluate`: the held-out sets of a recipe on a model, by the members that a run has, without training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from configs.evaluation import HELDOUT
from configs.load import RecipeError, parse_recipe
from configs.node import START, STUDENT
from configs.schema import Recipe
from objectives.schedule import initial_beta
from orchestrator import checkpoint
from orchestrator.run import DONE, STOPPED, Run
from orchestrator.stopping import StopAsked
from orchestrator.surface import submission
from orchestrator.surface.carry_out import carry_out
from orchestrator.surface.measuring import movement
from orchestrator.surface.outcome import console, write_results

if TYPE_CHECKING:
    from orchestrator.pools.layout import MemberSpecs


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model directory, or a whole checkpoint of a run whose student is in `model`."""

    model: Path
    saved: Path | None = None
    run: Path | None = None

    @property
    def own_recipe(self) -> Path:
        """The recipe of the run that it is of. Raises RecipeError if it is of none."""
        if self.run is None:
            raise RecipeError(f"{self.model}: is of no run; say --recipe RECIPE with the held-out sets")
        return self.run / submission.RECIPE


@dataclass
class Evaluating(Run):
    """A run that evaluates once, and trains nothing. `saved`: the checkpoint that its learner starts from."""

    saved: Path | None = None

    async def execute(self) -> int:
        """Evaluate every set. Returns the exit code (0 or 3)."""
        try:
            self.progress.rewind(None, initial_beta(self.recipe.objective))
            self.directory.mkdir(parents=True, exist_ok=True)
            await self.swaps.write()
            return await self._while_the_learner_lives(self._evaluated())
        except StopAsked:
            await self.summarise(STOPPED)
            return STOPPED
        finally:
            self.roles.release()

    async def _evaluated(self) -> int:
        self.observer.phase("starting the engines")
        await self.stopping.unless_asked(self.roles.bring_up(1, self.progress.version, self.saved))
        await self.stopping.unless_asked(self.roles.load(1))
        await self.stopping.unless_asked(self.measurements.before())
        await self.summarise(DONE)
        return DONE


def subject_of(named: Path) -> Subject:
    """What a path names: a model directory, a checkpoint of a run, or a run: its model, else its newest checkpoint.
    Raises RecipeError."""
    folder = named.absolute()
    if (folder / "config.json").exists():
        return Subject(folder, run=folder.parent if (folder.parent / submission.RECIPE).exists() else None)
    if (folder / checkpoint.MANIFEST).exists():
        return _checkpoint(folder.parent.parent, folder)
    if not (folder / submission.RECIPE).exists():
        raise RecipeError(f"{named}: is no model, checkpoint or run; give a directory with config.json, or a run")
    if (folder / "model" / "config.json").exists():
        return Subject(folder / "model", run=folder)
    saved = checkpoint.latest(folder)
    if saved is None:
        raise RecipeError(f"{named}: has no model and no whole checkpoint yet; give a model directory")
    return _checkpoint(folder, saved.folder)


def _checkpoint(run: Path, folder: Path) -> Subject:
    step = folder.name.removeprefix("step_")
    if not step.isdigit() or checkpoint.folder_of(run, int(step)) is None:
        raise RecipeError(f"{folder}: is no whole checkpoint: a file is missing or was changed; name another")
    return Subject(Path(submission.recorded_recipe(run).path_of(STUDENT)), folder, run)


def recipe_for(recipe: Recipe, subject: Subject) -> Recipe:
    """The recipe with the subject as its student. `start` stays the recipe's own student, so that a KL to the start is
    that of the training. Raises RecipeError."""
    if not recipe.evaluate.sets and recipe.data.heldout is None:
        raise RecipeError("evaluate: the recipe has no held-out prompts; give evaluate.sets or data.heldout")
    if subject.saved is not None:
        _refuse_other_ranks(recipe, subject.saved)
    tree = recipe.model_dump(mode="json")
    tree["models"].pop(START if recipe.metrics.start_kl else "", None)
    tree["models"][STUDENT]["path"] = str(subject.model)
    tree["run"]["name"] = f"{recipe.run.name}.evaluate-{time.strftime('%Y%m%d-%H%M%S')}"
    tree["checkpoint"]["best"], tree["metrics"]["trackers"] = None, []
    tree["metrics"]["movement"] = False  # of the subject from itself
    found = parse_recipe(tree)
    start = {START: recipe.models[START]} if recipe.metrics.start_kl else {}
    return found.model_copy(update={"models": found.models | start})


def _refuse_other_ranks(recipe: Recipe, saved: Path) -> None:
    ranks = json.loads((saved / checkpoint.STATE).read_text())["ranks"]
    if ranks != recipe.learner.ranks:
        raise RecipeError(
            f"learner.ranks: {recipe.learner.ranks}, but {saved} was saved by {ranks}; evaluate with as many"
        )


def carry_out_of(subject: Subject, recipe: Recipe, directory: Path, members: MemberSpecs | None) -> int:
    """Evaluate; returns the exit code."""
    return carry_out(recipe, directory, members, partial(Evaluating, saved=subject.saved))


def tell(directory: Path, subject: Subject, start: str, out: Path | None, as_json: bool) -> None:
    """Print the results of an evaluation, as tables or as JSON, and write them to `out`. `start`: the model that the
    subject's weights are compared with."""
    results = results_of(directory, subject) | {"movement": movement.measured(start, subject.model, subject.saved)}
    if out is not None:
        write_results(results, out)
    if as_json:
        console.print_json(data=results)
    else:
        console.print(table_of(results["sets"]))
        console.print(movement.table_of(results["movement"]))


def results_of(directory: Path, subject: Subject) -> dict[str, Any]:
    """What was measured, by set, from the summary of an evaluation."""
    evaluation = json.loads((directory / "summary.json").read_text())["evaluation"]
    sets = {HELDOUT: evaluation["before"]} if evaluation["before"] else {}
    sets |= {name: of_set["before"] for name, of_set in evaluation["sets"].items() if of_set["before"]}
    return {"model": str(subject.saved or subject.model), "directory": str(directory), "sets": sets}


def table_of(sets: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each number that is known."""
    table = Table("set", "metric", "value", "95% interval")
    for name, line in sets.items():
        intervals = line.get("intervals", {})
        for metric, value in line.items():
            if metric != "intervals" and value is not None:
                bounds = " to ".join(f"{bound:.4g}" for bound in intervals.get(metric, ()))
                table.add_row(name, metric, f"{value:.4g}" if isinstance(value, float) else str(value), bounds)
    return table
