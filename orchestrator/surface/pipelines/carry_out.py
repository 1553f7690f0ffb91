"""From a pipeline to an exit code: its stages one after the other, on one Ray cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.pipeline import Pipeline, Stage, dump_pipeline
from configs.refusal import RecipeError
from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.preflight import capacity, cluster, files
from orchestrator.preflight.comparison import refuse
from orchestrator.surface import submission
from orchestrator.surface.carry_out import (
    STOPPED,
    Handlers,
    StoppedEarly,
    carry_out_one,
    ended,
    mark_if_stopped,
    removed_if_unused,
)
from orchestrator.surface.engines import Engines
from orchestrator.surface.outcome import console, say_error
from orchestrator.surface.pipelines import folders
from orchestrator.surface.submission import Standing

if TYPE_CHECKING:
    from orchestrator.pools.layout import MemberSpecs

Stages = Sequence[tuple[Stage, Recipe]]


def carry_out_pipeline(pipeline: Pipeline, directory: Path, members: MemberSpecs | None = None) -> int:
    """Carry out the stages that are not done; returns the exit code of the last one that ran. What was stopped ends
    this process. `members`: see build_pools."""
    handlers = Handlers()
    handlers.before_the_loop()
    with cluster.own_name(directory), removed_if_unused(directory):
        _leaving(pipeline, directory, handlers)
        try:
            code = _on_one_cluster(pipeline, directory, handlers, members)
        except (StoppedEarly, SystemExit):  # Ray's handler of SIGTERM exits while Ray starts
            handlers.leave()
            code = STOPPED
        _summarise(pipeline, directory, code)
    return ended(code)


def _on_one_cluster(pipeline: Pipeline, directory: Path, handlers: Handlers, members: MemberSpecs | None) -> int:
    left = [stage for stage in pipeline.stages if not _is_done(directory / stage.run)]
    recipes = [(stage, folders.stage_recipe(pipeline, stage, directory, all_there=False)) for stage in left]
    console.print(f"reading the recipe, prompts and tokenizers of {len(left)} stages")
    _check(recipes, directory)
    with _recorded(pipeline, directory), cluster.driver(recipes[0][1]):
        handlers.before_the_loop()
        for stage in left:
            code = _carry_out_stage(pipeline, stage, directory, handlers, members)
            if code:
                return code
            _leaving(pipeline, directory, handlers)
            if stage is not left[-1] and (handlers.asked or _is_stopped(pipeline, directory)):
                handlers.leave()
                return STOPPED
    return 0


@contextlib.contextmanager
def _recorded(pipeline: Pipeline, directory: Path) -> Iterator[None]:
    """The pipeline's recipe.yaml is there from here on, unless it is refused before its first stage began."""
    checkpoint.keep_recipe(directory, dump_pipeline(pipeline))
    try:
        yield
    except RecipeError:
        if not any(run.exists() for run in folders.stage_directories(pipeline, directory)):
            (directory / submission.RECIPE).unlink()
        raise


def _carry_out_stage(
    pipeline: Pipeline, stage: Stage, directory: Path, handlers: Handlers, members: MemberSpecs | None
) -> int:
    console.print(folders.headline(pipeline, stage), markup=False, soft_wrap=True)
    try:
        recipe = folders.stage_recipe(pipeline, stage, directory)
        code = carry_out_one(recipe, directory / stage.run, handlers, Engines(members))
    except RecipeError as error:
        raise RecipeError(*(f"stages.{stage.name}: {line}" for line in error.lines)) from None
    _summarise(pipeline, directory, code)
    return code


def _check(recipes: Stages, directory: Path) -> None:
    """Check the files and, where the cluster starts here, the machine for all stages before the first begins. Raises
    RecipeError."""
    for stage, recipe in recipes:
        try:
            inputs = files.read_inputs(recipe)
            if not cluster.joins_cluster(recipe):
                refuse(capacity.compared_with_machines(recipe, inputs, directory))
        except RecipeError as error:
            raise RecipeError(*(f"stages.{stage.name}: {line}" for line in error.lines)) from None


def _leaving(pipeline: Pipeline, directory: Path, handlers: Handlers) -> None:
    """What a signal leaves between two stages, and before the first."""

    def leave() -> None:
        try:
            checkpoint.keep_recipe(directory, dump_pipeline(pipeline))
            mark_if_stopped(directory, handlers)
        except OSError as error:  # a full disk
            say_error(f"recipe.yaml could not be written: {error}; run it again")
            return
        console.print(f"stopped between two stages; go on with: logratio resume {directory.name}")

    handlers.leave = leave


def _summarise(pipeline: Pipeline, directory: Path, code: int) -> None:
    try:
        folders.write_summary(pipeline, directory, code)
    except OSError as error:
        say_error(f"summary.json could not be written: {error}")


def _is_done(run: Path) -> bool:
    return submission.standing(run) is Standing.DONE


def _is_stopped(pipeline: Pipeline, directory: Path) -> bool:
    """Whether `logratio stop` came as a stage ended."""
    return folders.standing(pipeline, directory) is Standing.STOPPED
