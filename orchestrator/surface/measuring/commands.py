"""The command `logratio probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.surface.arguments import Overrides, RecipePath

RESPONSES = 256  # a few hundred: overlaps and shares are then known to a few hundredths


def probe(
    context: typer.Context,
    recipe: RecipePath,
    overrides: Overrides = None,
    responses: Annotated[int, typer.Option(metavar="N", help="How many responses.")] = RESPONSES,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the results as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Say from a few hundred responses whether RECIPE's distillation will pay, with which settings, and what a thousand
    steps will cost. Trains nothing."""
    from configs.hardware import cpu_has_bf16, resolve_dtypes
    from configs.load import load_recipe
    from orchestrator.preflight.inputs import hub
    from orchestrator.surface import checked
    from orchestrator.surface.measuring import probing
    from orchestrator.surface.outcome import write_results
    from orchestrator.surface.submission import run_directory

    asked = resolve_dtypes(hub.pinned(load_recipe(recipe, overrides or ())), cpu_has_bf16())
    resolved = probing.recipe_for(asked)
    checked.environment(resolved, directory := run_directory(resolved.run.name, resolved.run.root))
    if code := probing.carry_out_of(asked, resolved, responses, directory, context.obj):
        raise typer.Exit(code)
    found = probing.read(directory)
    if out is not None:
        write_results(found, out)
    probing.tell(found, as_json)
