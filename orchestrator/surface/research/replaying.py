"""`logratio replay`: another objective on the recorded samples of a step. No member starts, nothing is sampled."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from configs.load import load_tree, merged, model_directory, parse_override, parse_recipe
from configs.node import STUDENT
from configs.refusal import RecipeError, reason
from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.surface.report.recorded import recorded_steps, table_of
from orchestrator.surface.research.runs import read_run
from orchestrator.surface.research.stored import Stored, missing

OWN, OTHER = "the run's own", "the other"


@dataclass(frozen=True)
class Before:
    """The weights that a step began with: a model directory, and the checkpoint that holds them, if it is one."""

    model: Path
    checkpoint: Path | None = None


def other_recipe(own: Recipe, file: Path | None, overrides: Sequence[str]) -> Recipe:
    """The run's recipe with another objective: that of a recipe file, or a file of `objective` alone, and overrides.
    Raises RecipeError."""
    tree = own.model_dump(mode="json")
    if file is not None:
        given = load_tree(file)
        objective = given.get("objective", {"target": "none"} if given.keys() & {"models", "run"} else given)
        if not isinstance(objective, Mapping):
            raise RecipeError(f"{file}: its objective is no mapping; give a recipe, or the keys of an objective")
        tree["objective"] = dict(objective)
    for override in overrides:
        parsed = parse_override(override)
        if parsed.keys() - {"objective"}:
            raise RecipeError(f"{override}: is no key of the objective; the samples are those of the run as it was")
        tree = merged(tree, parsed)
    return parse_recipe(tree)


def replay(directory: Path, other: Recipe, step: int | None, model: Path | None) -> dict[str, Any]:
    """Both objectives' gradients on the samples of a step, by default of the last one whose weights are there, at the
    weights that it began with, or at `model`. Raises RecipeError, which names what was not stored."""
    run = read_run(directory)
    if lacks := missing(run.recipe, other.objective):
        raise RecipeError(f"replay: this objective needs {lacks}")
    at, before = _weights(directory, run.recipe, step, model)
    stored = Stored.of(_table(directory, at))
    why = missing(run.recipe, run.recipe.objective)
    betas = {line["step"]: line.get("beta") for line in run.steps}
    recipes = [(OTHER, other, None)] if why else [(OWN, run.recipe, betas.get(at)), (OTHER, other, None)]
    found = _computed(run.recipe, before, [(recipe, stored.share(recipe, at, beta)) for _, recipe, beta in recipes])
    sides = {name: side for (name, *_), side in zip(recipes, found["sides"], strict=True)}
    return {
        "run": str(directory),
        "step": at,
        "weights": str(before.checkpoint or before.model),
        "samples": len(stored.rows),
        "groups": len(stored.groups()),
        "own": sides.get(OWN),
        "other": sides[OTHER],
        "cosine": found["cosine"],
        "why_no_cosine": f"the run's own objective needs {why}" if why else None,
    }


def _computed(recipe: Recipe, before: Before, sides: Sequence[tuple[Recipe, Any]]) -> dict[str, Any]:
    from actors.learning import replaying
    from orchestrator.preflight.files import read_models

    models = read_models(recipe)
    rows = recipe.learner.rows_per_chunk(models.vocabulary)
    weights = replaying.Weights(before.model, before.checkpoint, recipe.learner.packing, models.vocabulary, rows)
    read = [
        replaying.Side(each.objective, share.share, each.learner_temperature, models.end_token_ids)
        for each, share in sides
    ]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a member's log would say of the model
            return replaying.replay(weights, read, [share.payloads for _, share in sides])
    except (OSError, ValueError) as error:
        raise RecipeError(f"{before.checkpoint or before.model}: cannot be replayed on ({reason(error)})") from None


def _weights(directory: Path, recipe: Recipe, step: int | None, model: Path | None) -> tuple[int, Before]:
    """The step, and its weights. Raises RecipeError."""
    recorded = recorded_steps(directory)
    if not recorded:
        raise RecipeError(
            f"{directory}: has no recorded samples, samples/step_*; a run records every record.every steps"
        )
    if step is not None and step not in recorded:
        raise RecipeError(f"--step {step}: was not recorded; there are {_named(recorded)}")
    if model is not None:
        return step or recorded[-1], Before(model.absolute())
    student = model_directory(recipe.path_of(STUDENT))
    for at in [step] if step else reversed(recorded):
        if at == 1:
            return at, Before(student)
        if saved := checkpoint.folder_of(directory, at - 1):
            return at, Before(student, saved)
    have = [at for at in recorded if at == 1 or checkpoint.folder_of(directory, at - 1)]
    raise RecipeError(
        f"--step {step or recorded[-1]}: the weights that it began with were not kept; steps with theirs: "
        f"{_named(have) or 'none'}; or name other weights: --model {directory.name}/model"
    )


def _table(directory: Path, step: int) -> Any:
    table = table_of(directory, f"step_{step:06d}")
    if table is None or not len(table):
        raise RecipeError(f"{directory}: the samples of step {step} cannot be read; name another: --step N")
    return table


def _named(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[-8:])) + (f" and {len(steps) - 8} before" if len(steps) > 8 else "")


def tables_of(found: Mapping[str, Any]) -> Table:
    """A row a number, a column an objective."""
    table = Table(
        "", OWN, OTHER, title=f"step {found['step']}, {found['samples']} samples of {found['groups']} prompts"
    )
    for name in found["other"]:
        table.add_row(name, *(_short((found[side] or {}).get(name)) for side in ("own", "other")))
    table.add_row("gradient cosine", "", _short(found["cosine"]))
    return table


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
