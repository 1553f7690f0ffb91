"""`logratio replay`: another objective on the recorded samples of a step. No member starts, nothing is sampled."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from actors.wire.kept_scores import stem
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
class At:
    """Whose samples, and at which weights: a recorded `step`, None for the last one with weights; the `checkpoint`
    after a step, or a `model` directory, None for the weights that the step began with."""

    step: int | None = None
    checkpoint: int | None = None
    model: Path | None = None


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


def replay(directory: Path, other: Recipe, at: At) -> dict[str, Any]:
    """Both objectives' gradients on the samples of a step. Raises RecipeError, which names what was not stored."""
    run = read_run(directory)
    step, before = _weights(directory, run.recipe, at)
    stored = Stored.of(_table(directory, step), run.recipe, table_of(directory, stem(step)))
    if lacks := missing(run.recipe, other.objective, stored.kept):
        raise RecipeError(f"replay: this objective needs {lacks}")
    why = missing(run.recipe, run.recipe.objective, stored.kept)
    betas = {line["step"]: line.get("beta") for line in run.steps}
    recipes = [(OTHER, other, None)] if why else [(OWN, run.recipe, betas.get(step)), (OTHER, other, None)]
    shares = [(recipe, stored.share(recipe, step, beta)) for _, recipe, beta in recipes]
    found = _computed(run.recipe, before, _heads(run.recipe, stored), shares)
    sides = {name: side for (name, *_), side in zip(recipes, found["sides"], strict=True)}
    return {
        "run": str(directory),
        "step": step,
        "weights": str(before.checkpoint or before.model),
        "samples": len(stored.rows),
        "groups": len(stored.groups()),
        "own": sides.get(OWN),
        "other": sides[OTHER],
        "cosine": found["cosine"],
        "why_no_cosine": f"the run's own objective needs {why}" if why else None,
    }


def _heads(recipe: Recipe, stored: Stored) -> dict[tuple[str, int], tuple[Path, str]]:
    """Where the LM heads lie that kept hidden states need, and the dtype that they were served in."""
    return {
        (model, version): (model_directory(recipe.path_of(model, version)), recipe.scorer_of(model).dtype)
        for model, support in recipe.objective.support_of.items()
        if support == "full" and model in stored.kept and recipe.models[model].weights == "frozen"
        for version in sorted(stored.versions(model))
    }


def _computed(
    recipe: Recipe, before: Before, heads: Mapping[Any, tuple[Path, str]], sides: Sequence[tuple[Recipe, Any]]
) -> dict[str, Any]:
    from actors.learning import replaying
    from orchestrator.preflight.files import read_models

    models = read_models(recipe)
    rows = recipe.learner.rows_per_chunk(models.vocabulary)
    packing = recipe.learner.packing
    weights = replaying.Weights(before.model, before.checkpoint, packing, models.vocabulary, rows, heads)
    read = [
        replaying.Side(each.objective, share.share, each.learner_temperature, models.end_token_ids)
        for each, share in sides
    ]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a member's log would say of the model
            return replaying.replay(weights, read, [share.payloads for _, share in sides])
    except (OSError, ValueError) as error:
        raise RecipeError(f"{before.checkpoint or before.model}: cannot be replayed on ({reason(error)})") from None


def _weights(directory: Path, recipe: Recipe, at: At) -> tuple[int, Before]:
    """The step, and its weights. Raises RecipeError."""
    recorded = recorded_steps(directory)
    if not recorded:
        raise RecipeError(
            f"{directory}: has no recorded samples, samples/step_*; a run records every record.every steps"
        )
    if at.step is not None and at.step not in recorded:
        raise RecipeError(f"--step {at.step}: was not recorded; there are {_named(recorded)}")
    if at.model is not None:
        return at.step or recorded[-1], Before(at.model.absolute())
    student = model_directory(recipe.path_of(STUDENT))
    if at.checkpoint is not None:
        after = at.checkpoint + 1
        return at.step or (after if after in recorded else recorded[-1]), _saved(directory, student, at.checkpoint)
    for step in [at.step] if at.step else reversed(recorded):
        if step == 1:
            return step, Before(student)
        if saved := checkpoint.folder_of(directory, step - 1):
            return step, Before(student, saved)
    have = [step for step in recorded if step == 1 or checkpoint.folder_of(directory, step - 1)]
    raise RecipeError(
        f"--step {at.step or recorded[-1]}: the weights that it began with were not kept; steps with theirs: "
        f"{_named(have) or 'none'}; or name other weights: --checkpoint N, or --model {directory.name}/model"
    )


def _saved(directory: Path, student: Path, step: int) -> Before:
    """The weights of the checkpoint after a step. Raises RecipeError."""
    if saved := checkpoint.folder_of(directory, step):
        return Before(student, saved)
    there = _named(checkpoint.steps_saved(directory)) or "none"
    raise RecipeError(f"--checkpoint {step}: was not kept, or is not whole; there are {there} (checkpoint.keep)")


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
