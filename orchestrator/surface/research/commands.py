"""`logratio compare`, `sweep` and `replay`, as typer calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from configs.refusal import RecipeError, looked_at
from orchestrator.surface.arguments import run_named
from orchestrator.surface.outcome import console, write_results


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="A B [RUN]...", help="Runs, or folders of runs.")],
    metric: Annotated[list[str], typer.Option("--metric", metavar="SET.NAME", help="What is compared; repeatable.")],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="BUDGET", help="steps, tokens, gpu_seconds or kl; by default all four."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Compare the recipe of the first run with the others', at equal steps, tokens, GPU-seconds and KL moved. Runs
    that differ in nothing but the seed are one arm; an interval needs two seeds of each."""
    from orchestrator.surface.research import comparing
    from orchestrator.surface.research.curves import AXES
    from orchestrator.surface.research.runs import read_run, within

    axes = list(dict.fromkeys(against or AXES))
    if unknown := [axis for axis in axes if axis not in AXES]:
        raise RecipeError(f"--against {unknown[0]!r}: is no budget; allowed: {', '.join(AXES)}")
    directories = dict.fromkeys(run for name in runs for run in (within(looked_at(Path(name))) or [run_named(name)]))
    arms, notices = comparing.arms_of([read_run(directory) for directory in directories])
    found = list(comparing.compare(arms, list(dict.fromkeys(metric)), axes))
    results = comparing.results(arms, found, notices)
    if out is not None:
        write_results(results, out)
    if as_json:
        return typer.echo(json.dumps(results, indent=1, allow_nan=False))
    console.print(f"first: {arms[0].label}", markup=False, soft_wrap=True)
    console.print(comparing.table_of(found))
    for line in notices:
        console.print(line, markup=False, soft_wrap=True)


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its directory.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the other objective.")
    ] = None,
    objective: Annotated[
        Path | None, typer.Option("--objective", metavar="FILE", help="A recipe, or the keys of an objective.")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="Whose recorded samples.")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="Weights, if not those that the step began with.")
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option("--checkpoint", metavar="N", help="The weights of the checkpoint after step N.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Compute the gradient of another objective on the samples that a step of RUN trained: its cosine with the run's
    own, signal-to-noise, and what was clipped. Samples nothing; needs the models, and no engine."""
    from orchestrator.surface.research import replaying
    from orchestrator.surface.submission import recorded_recipe

    directory = run_named(run)
    other = replaying.other_recipe(recorded_recipe(directory), objective, overrides or ())
    if checkpoint is not None and model is not None:
        raise RecipeError("--checkpoint and --model: name one of them")
    found = replaying.replay(directory, other, replaying.At(step, checkpoint, model))
    if out is not None:
        write_results(found, out)
    if as_json:
        return typer.echo(json.dumps(found, indent=1, allow_nan=False))
    console.print(replaying.tables_of(found))
    if found["why_no_cosine"]:
        console.print(f"no cosine: {found['why_no_cosine']}", markup=False, soft_wrap=True)


def sweep(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")],
    values: Annotated[list[str], typer.Argument(metavar="KEY=A,B... [seed=0,1...]", help="Values of keys.")],
    resume: Annotated[bool, typer.Option("--resume", help="Also go on with arms that a person stopped.")] = False,
) -> None:
    """Train RECIPE once for every combination of the values, in <run.root>/<run.name>/. Run again, it leaves alone what
    is done and goes on with what was cut short."""
    from orchestrator.preflight.inputs import hub
    from orchestrator.surface.carry_out import ended
    from orchestrator.surface.research.grid import arms_of
    from orchestrator.surface.research.sweeping import carry_out_sweep
    from orchestrator.surface.submission import run_directory

    name, root, arms = arms_of(recipe, values, hub.pinned)
    directory = run_directory(name, root)
    raise typer.Exit(ended(carry_out_sweep(directory, arms, resume, context.obj)))
