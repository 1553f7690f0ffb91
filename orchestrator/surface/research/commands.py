"""`logratio compare`, `sweep` and `replay`, as typer calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from configs.refusal import RecipeError
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
    directories = dict.fromkeys(run for name in runs for run in (within(Path(name)) or [run_named(name)]))
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
