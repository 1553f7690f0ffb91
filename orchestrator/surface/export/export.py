"""Writes an export: picks the run's weights, copies or makes the model directory, and adds the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.load import model_directory
from configs.node import STUDENT
from configs.refusal import RecipeError, looked_at, reason
from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.surface.export.card import at_step, model_card
from orchestrator.surface.export.lineage import base_of, runs_behind
from orchestrator.surface.pipelines.folders import BEST_MODEL, MODEL, recorded_pipeline
from orchestrator.surface.submission import SUMMARY, is_pipeline


def export(directory: Path, out: Path, step: int | None = None, best: bool = False) -> str:
    """Write the model of a run, or of a pipeline's last stage, to `out`: its last weights, those of the checkpoint of
    `step`, or its best. Returns what was written, in words. Raises RecipeError; `out` is then as it was."""
    if step is not None and best:
        raise RecipeError("--checkpoint and --best: give one of them")
    run = _last_stage(directory)
    _refuse_taken(out)
    runs = runs_behind(run)
    recipe, partial = runs[-1][1], out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        which = _write(run, recipe, partial, step, best)
        base = base_of(runs[0][1])
        for file in base.files:
            shutil.copyfile(file, partial / file.name)
        names = [(folder.name, each) for folder, each in runs]
        card = model_card(out.name, names, base, which, _evaluation(run, step, best))
        (partial / "README.md").write_text(card, encoding="utf-8")
        checkpoint.put_in_place(partial, out)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{out}: cannot be written ({reason(error)}); make room there, or name another") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return which


def _write(run: Path, recipe: Recipe, partial: Path, step: int | None, best: bool) -> str:
    if step is not None:
        return _write_checkpoint(run, recipe, partial, step)
    folder = run / (BEST_MODEL if best else MODEL)
    if not folder.is_dir():
        remedy = "set checkpoint.best in the recipe" if best else "let it end, or name a checkpoint: --checkpoint N"
        raise RecipeError(f"{run}: has no {folder.name}/; {remedy}")
    shutil.copytree(folder, partial)
    return "its best weights by a held-out metric" if best else "its last weights"


def _write_checkpoint(run: Path, recipe: Recipe, partial: Path, step: int) -> str:
    from actors.learning.saved_model import write_saved_model
    from orchestrator.preflight.files import read_models

    folder = checkpoint.folder_of(run, step)
    if folder is None:
        there = sorted(int(f.name.removeprefix("step_")) for f in (run / "checkpoints").glob("step_*[0-9]"))
        raise RecipeError(f"--checkpoint {step}: {run} has no whole checkpoint of that step; there are: {there}")
    ends = read_models(recipe).end_token_ids if recipe.objective.end_tokens == "class" else ()
    source = model_directory(recipe.path_of(STUDENT))
    write_saved_model(folder, source, recipe.learner.dtype, ends, partial)
    return f"its weights after step {step}"


def _last_stage(directory: Path) -> Path:
    return directory / recorded_pipeline(directory).stages[-1].run if is_pipeline(directory) else directory


def _refuse_taken(out: Path) -> None:
    looked_at(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir())):
        raise RecipeError(f"{out}: is there already; name a directory that is not")


def _evaluation(run: Path, step: int | None, best: bool) -> Mapping[str, Any]:
    """What the run's summary says of the weights that are exported."""
    try:
        summary = json.loads((run / SUMMARY).read_bytes())
        found = summary.get("evaluation") or {}
        if best:
            step = summary["best"]["step"]
        return found if step is None or step == summary["steps"] else at_step(found, step)
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}
