"""What `logratio check` prints: a recipe with its files, and with the machines that it would use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from configs import rules
from configs.refusal import printable
from configs.schema import Recipe
from orchestrator.preflight import adapters, capacity, cluster, files
from orchestrator.preflight.budgets.fitted import by_gpu, fitted_to
from orchestrator.preflight.comparison import Comparison, refuse
from orchestrator.preflight.described import layout, models
from orchestrator.preflight.described.spec import read_spec, survey_of
from orchestrator.preflight.environment import check_environment
from orchestrator.preflight.files import Inputs
from orchestrator.preflight.inputs import architectures
from orchestrator.preflight.isolation import check_isolation
from orchestrator.surface.outcome import console
from orchestrator.surface.trackers.libraries import check_installed


def environment(recipe: Recipe, directory: Path) -> None:
    """Check what a run needs of this machine before it reads a file of its recipe. Raises RecipeError."""
    check_installed(recipe.metrics.trackers)
    check_isolation(recipe)
    check_environment(recipe, directory, starts_ray=not cluster.joins_cluster(recipe))


def here(recipe: Recipe) -> Inputs:
    """Read a recipe's files, and print its layout, models and warnings. Raises RecipeError."""
    inputs = files.read_inputs(recipe)
    check_isolation(recipe)
    console.print(_layout_table(files.describe_layout(recipe)))
    _print_lines(files.describe_models(recipe))
    _print_lines(adapters.describe_adapters(recipe, capacity.read_sizes(recipe)) if recipe.learner.lora else ())
    console.print(
        f"{len(inputs.train)} prompts, {len(inputs.heldout)} held out; {inputs.parameters / 1e6:.1f} M parameters, "
        f"{inputs.version_bytes / 2**20:.0f} MiB a weight version"
    )
    _print_lines(by_gpu(recipe, inputs.extent, capacity.read_sizes(recipe)))
    _print_warnings(recipe, inputs.warnings)
    return inputs


def on_reachable_cluster(recipe: Recipe, inputs: Inputs, directory: Path) -> None:
    """Print what fits and what is tight. Raises RecipeError with a line for each thing that is short."""
    _print_lines(f"fits: {line}" for line in files.describe_files(recipe, inputs))
    joined = cluster.driver(recipe) if cluster.joins_cluster(recipe) else contextlib.nullcontext()
    with joined:
        survey = cluster.survey(recipe, directory)
        comparisons = capacity.compared_with(recipe, inputs, survey)
    _print_lines(fitted_to(recipe, inputs.extent, capacity.read_sizes(recipe), survey.machines)[1])
    _print_comparisons(comparisons)
    console.print("the cluster can hold it")


def on_described_cluster(recipe: Recipe, file: Path) -> None:
    """Lay a recipe out on the cluster of a spec. Raises RecipeError with a line for each thing that is short."""
    spec = read_spec(file)
    described = models.read(recipe, spec)
    console.print(_layout_table(files.describe_layout(recipe)))
    laid = layout.lay_out(recipe, spec, described)
    _, numbers = fitted_to(recipe, described.extent, described.sizes, survey_of(spec).machines)
    lines = architectures.describe_architectures(recipe, described.folders)
    _print_lines([*lines, models.line(described), *laid.homes, *numbers])
    _print_lines(adapters.describe_adapters(recipe, described.sizes))
    _print_warnings(recipe, described.warnings)
    if described.unseen:
        _print_lines([f"not checked: {', '.join(described.unseen)}: they are not on this machine"])
    _print_comparisons(laid.comparisons)
    console.print("the described cluster can hold it")


def _print_comparisons(comparisons: Sequence[Comparison]) -> None:
    _print_lines(f"{one.grade}: {one.line}" for one in comparisons if one.grade != "short")
    refuse(comparisons)


def _print_warnings(recipe: Recipe, of_files: Sequence[str]) -> None:
    for warning in (*rules.warnings(recipe), *of_files):
        console.print(f"warning: {warning}", markup=False)
    for bias in rules.biases(recipe):
        console.print(f"biased on request: {bias}", markup=False)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _layout_table(rows: Sequence[Sequence[Any]]) -> Table:
    table = Table("role", "members", "actors each", "CPUs", "GPUs", "runs")
    for row in rows:
        table.add_row(*(f"{cell:g}" if isinstance(cell, float) else escape(printable(str(cell))) for cell in row))
    return table
