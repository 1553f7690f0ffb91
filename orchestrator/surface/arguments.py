"""Arguments that several commands have, and how those like ROLE=N, MODEL=DIRECTORY and RUN are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from configs.load import absolute_path
from configs.refusal import RecipeError, reason, shortened, shown

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. run.steps=5.")]


def sizes_of(texts: Sequence[str]) -> dict[str, int]:
    """ROLE=N as a mapping. Raises RecipeError."""
    sizes: dict[str, int] = {}
    for text in texts:
        role, _, number = text.partition("=")
        if not number.isdigit() or int(number) < 1:
            raise RecipeError(f"{shown(text)}: write ROLE=N with N of at least 1, e.g. rollout=4")
        if role in sizes:
            raise RecipeError(f"{shown(text)}: {role} is there twice; say one size")
        sizes[role] = int(number)
    return sizes


def paths_of(texts: Sequence[str]) -> dict[str, str]:
    """MODEL=DIRECTORY as a mapping to absolute paths. Raises RecipeError."""
    paths: dict[str, str] = {}
    for text in texts:
        model, equals, path = text.partition("=")
        if not (model and equals and path):
            raise RecipeError(f"{shown(text)}: write MODEL=DIRECTORY, e.g. teacher=/models/teacher-2")
        if model in paths:
            raise RecipeError(f"{shown(text)}: {model} is there twice; say one directory")
        paths[model] = absolute_path(path, Path.cwd())
    return paths


def run_named(run: str, file: str = "recipe.yaml") -> Path:
    """The run directory that holds `file`: a path, or a name under LOGRATIO_RUNS or ./runs, or of a stage in one of
    these. Raises RecipeError."""
    runs, unseen = Path(os.environ.get("LOGRATIO_RUNS") or "runs"), ""
    for candidate in (Path(run), runs / run, *(folder / run for folder in _folders_of(runs))):
        try:
            if (candidate / file).exists():
                return candidate.absolute()
        except OSError as error:
            unseen = unseen or f" ({shortened(str(candidate))} cannot be looked at: {reason(error)})"
    raise RecipeError(
        f"{shortened(run)}: no such run here{unseen}; give its directory, or set LOGRATIO_RUNS to the folder of runs"
    )


def _folders_of(runs: Path) -> list[Path]:
    """Directories of runs, in the order of their names; none where this user cannot look."""
    try:
        return sorted(runs.iterdir())
    except OSError:
        return []
