"""`logratio run`, `resume` and `check` of a recipe with stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.pipeline import Pipeline, parse_pipeline, shadowed
from configs.refusal import RecipeError
from configs.schema import Recipe
from orchestrator.preflight.cluster import is_alive
from orchestrator.surface import checked
from orchestrator.surface.carry_out import STOPPED
from orchestrator.surface.outcome import console
from orchestrator.surface.pipelines import folders
from orchestrator.surface.pipelines.carry_out import carry_out_pipeline
from orchestrator.surface.submission import Standing, run_directory

if TYPE_CHECKING:
    from orchestrator.pools.layout import MemberSpecs


def run(tree: Mapping[str, Any], overrides: Sequence[str], members: MemberSpecs | None) -> int:
    """`logratio run`: begin a pipeline, go on with it, or leave it as it is; returns the exit code. Raises
    RecipeError."""
    pipeline = parse_pipeline(tree)
    _say_shadowed(pipeline, overrides)
    directory = run_directory(pipeline.name, pipeline.root)
    if (directory / "recipe.yaml").exists():
        pipeline = folders.same_pipeline(directory, pipeline)
    stands = folders.standing(pipeline, directory)
    if stands is Standing.DONE:
        console.print(f"{directory} is done; choose another run.name to train anew", markup=False, soft_wrap=True)
        return 0
    if stands is Standing.STOPPED and not is_alive(directory):
        console.print(
            f"{directory} was stopped by a person; go on with: logratio resume {directory.name}",
            markup=False,
            soft_wrap=True,
        )
        return STOPPED
    return _carry_out(pipeline, directory, members)


def resume(directory: Path, members: MemberSpecs | None) -> int:
    """`logratio resume`: go on in the stage that was under way; returns the exit code. Raises RecipeError."""
    pipeline = folders.recorded_pipeline(directory)
    if not is_alive(directory):
        folders.forget_stop(pipeline, directory)
    if folders.standing(pipeline, directory) is Standing.DONE:
        console.print(f"{directory} is done", markup=False, soft_wrap=True)
        return 0
    return _carry_out(pipeline, directory, members)


def check(tree: Mapping[str, Any], overrides: Sequence[str], on_cluster: bool, spec: Path | None) -> None:
    """`logratio check` of every stage. A model that is not there yet is checked as the one that it is made of. Raises
    RecipeError."""
    pipeline = parse_pipeline(tree)
    _say_shadowed(pipeline, overrides)
    directory = run_directory(pipeline.name, pipeline.root)
    for stage in pipeline.stages:
        console.print(folders.headline(pipeline, stage), markup=False, soft_wrap=True)
        try:
            recipe = folders.new_recipe(pipeline, stage, directory, all_there=False)
            _check_stage(recipe, directory, on_cluster, spec)
        except RecipeError as error:
            raise RecipeError(*(f"stages.{stage.name}: {line}" for line in error.lines)) from None


def _check_stage(recipe: Recipe, directory: Path, on_cluster: bool, spec: Path | None) -> None:
    if spec is not None:
        return checked.on_described_cluster(recipe, spec)
    inputs = checked.here(recipe)
    if on_cluster:
        checked.environment(recipe, directory)
        checked.on_reachable_cluster(recipe, inputs, directory)


def _carry_out(pipeline: Pipeline, directory: Path, members: MemberSpecs | None) -> int:
    for stage in pipeline.stages:
        checked.environment(folders.stage_recipe(pipeline, stage, directory, all_there=False), directory)
    return carry_out_pipeline(pipeline, directory, members)


def _say_shadowed(pipeline: Pipeline, overrides: Sequence[str]) -> None:
    for line in shadowed(pipeline, overrides):
        console.print(f"warning: {line}", markup=False, soft_wrap=True)
