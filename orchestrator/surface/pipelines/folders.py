"""The run directory of a pipeline, and where it stands. Pure but for files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.hardware import cpu_has_bf16, resolve_dtypes
from configs.load import load_tree
from configs.pipeline import STAGES, Made, Pipeline, Stage, parse_pipeline
from configs.refusal import RecipeError
from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.surface import submission
from orchestrator.surface.submission import MARKER, RECIPE, SUMMARY, Standing, is_pipeline

SUMMARY_FORMAT = 1  # of a pipeline's summary.json
MODEL, BEST_MODEL = "model", "model-best"  # what a stage makes, in its run directory


def recorded_pipeline(directory: Path) -> Pipeline:
    """The pipeline that a run directory was begun with. Raises RecipeError."""
    try:
        return parse_pipeline(submission.relocated(load_tree(directory / RECIPE)))
    except RecipeError as error:
        raise RecipeError(f"{directory / RECIPE} is no recipe to go on with: {'; '.join(error.lines)}") from None


def same_pipeline(directory: Path, submitted: Pipeline) -> Pipeline:
    """The pipeline to go on with: the recorded one. Raises RecipeError with the keys in which the submitted one
    differs."""
    if not is_pipeline(directory):
        raise RecipeError(f"run.name: {directory} holds a run without stages; choose another run.name")
    recorded = recorded_pipeline(directory)
    found = submission.differences(recorded.plain(), submitted.plain())
    submission.refuse_differences(directory, list(found))
    return recorded


def stage_directories(pipeline: Pipeline, directory: Path) -> list[Path]:
    """Of each stage in order, its run's directory, which may not be there yet."""
    return [directory / stage.run for stage in pipeline.stages]


def standing(pipeline: Pipeline, directory: Path) -> Standing:
    """Where a pipeline stands: done with its last stage, stopped by a person in any."""
    if not (directory / RECIPE).exists():
        return Standing.NEW
    runs = stage_directories(pipeline, directory)
    if all(submission.standing(run) is Standing.DONE for run in runs):
        return Standing.DONE
    stopped = any((folder / MARKER).exists() for folder in (directory, *runs))
    return Standing.STOPPED if stopped else Standing.UNFINISHED


def forget_stop(pipeline: Pipeline, directory: Path) -> None:
    """A person asks the pipeline to go on."""
    for folder in (directory, *stage_directories(pipeline, directory)):
        submission.forget_stop(folder)


def stage_under_way(directory: Path) -> Path:
    """The run directory of the stage that lives, else of the last one that began. Raises RecipeError before the first.
    Of a run without stages the directory itself."""
    begun = begun_stages(directory)
    living = [run for run in begun if (run / "control.json").exists()]
    if not begun:
        raise RecipeError(f"{directory}: none of its stages has begun")
    return (living or begun)[-1]


def begun_stages(directory: Path) -> list[Path]:
    """The run directories of the stages that began, in order; of a run without stages the directory itself."""
    if not is_pipeline(directory):
        return [directory]
    return [run for run in stage_directories(recorded_pipeline(directory), directory) if (run / RECIPE).exists()]


def headline(pipeline: Pipeline, stage: Stage) -> str:
    """Which stage it is, and which models earlier ones made."""
    begins = "; ".join(f"{model} is {made}" for model, made in stage.uses.items()) or "from the start"
    return f"stage {pipeline.stages.index(stage) + 1} of {len(pipeline.stages)}, {stage.name}: {begins}"


def places(pipeline: Pipeline, directory: Path, all_there: bool) -> Callable[[Made], str | None]:
    """Gives the directory of a model that a stage makes: None while it is not there. With `all_there` that raises
    RecipeError."""
    runs = {stage.name: directory / stage.run for stage in pipeline.stages}

    def place(made: Made) -> str | None:
        folder = runs[made.stage] / (BEST_MODEL if made.best else MODEL)
        if folder.is_dir():
            return str(folder)
        if all_there:
            raise RecipeError(f"{made}: {folder} is gone; restore it, or remove {runs[made.stage]} to make it again")
        return None

    return place


def stage_recipe(pipeline: Pipeline, stage: Stage, directory: Path, all_there: bool = True) -> Recipe:
    """The recipe of a stage's run: the recorded one if it has begun. Raises RecipeError."""
    from orchestrator.preflight.inputs import hub

    run = directory / stage.run
    if not (run / RECIPE).exists():
        return new_recipe(pipeline, stage, directory, all_there)
    return hub.pinned(submission.recorded_recipe(run))


def new_recipe(pipeline: Pipeline, stage: Stage, directory: Path, all_there: bool) -> Recipe:
    """The recipe of a stage that has not begun. With `all_there` the models that it begins with must be. Raises
    RecipeError."""
    from orchestrator.preflight.inputs import hub

    made = pipeline.recipe(stage, str(directory), places(pipeline, directory, all_there))
    return resolve_dtypes(hub.pinned(made), cpu_has_bf16())


def write_summary(pipeline: Pipeline, directory: Path, code: int) -> None:
    """Write the pipeline's summary.json: of each stage that has ended, how. Raises OSError."""
    stages = [_summary(stage, directory) for stage in pipeline.stages]
    text = json.dumps({"format": SUMMARY_FORMAT, "exit": code, STAGES: stages}, indent=1)
    checkpoint.write_whole(directory / SUMMARY, text)


def _summary(stage: Stage, directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / stage.run / SUMMARY).read_bytes())
    except (OSError, ValueError):
        found = {}
    kept = ("exit", "steps", "ended_early", "seconds", "evaluation")
    return {"stage": stage.name, "run": stage.run, **{key: found.get(key) for key in kept}}
