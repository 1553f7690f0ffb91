"""What `logratio run` does with a run directory that exists, so that a job may be submitted again. Pure but for files.

A run that is done stays as it is. One that was cut short goes on, under the recipe it began with. One that a person
stopped waits for `logratio resume`. Another recipe under the same name is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from configs.hardware import resolve_dtypes
from configs.load import current_folder, load_recipe, parse_recipe
from configs.names.hub import same_source
from configs.node import AUTO
from configs.pipeline import STAGES
from configs.refusal import RecipeError, looked_at, shown
from configs.schema import Recipe
from orchestrator import checkpoint

RECIPE = "recipe.yaml"
SUMMARY = "summary.json"
MARKER = "stopped"  # there once a person has stopped the run, until `logratio resume`
NAMED = 4  # differing keys that a refusal names
JOB_FOLDER = re.compile(r"^.*/_ray_pkg_[0-9a-f]+(?=/)")  # where Ray unpacks a job's working directory


class Standing(Enum):
    """Where a run stands before this process takes it up."""

    NEW = "new"
    UNFINISHED = "unfinished"
    DONE = "done"
    STOPPED = "stopped by a person"


def run_directory(name: str, root: str) -> Path:
    """<root>/<name>, absolute. LOGRATIO_RUNS replaces a relative root.

    Raises RecipeError for a relative root under a Ray job, whose folder is temporary, and where this user cannot look.
    """
    folder = Path(root)
    if not folder.is_absolute():
        folder = Path(os.environ.get("LOGRATIO_RUNS") or folder)
    if not folder.is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise RecipeError(
            f"run.root: {folder} is relative, and a Ray job's folder is temporary; set an absolute run.root"
        )
    return looked_at((folder if folder.is_absolute() else current_folder() / folder) / name, "run.root")


def is_pipeline(directory: Path) -> bool:
    """Whether a run directory is one of a recipe with stages. False where its recipe cannot be read."""
    try:
        tree = yaml.safe_load((directory / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(tree, dict) and STAGES in tree


def resumed_as(directory: Path) -> str:
    """The name by which `logratio resume` goes on with a run: of a stage, that of the whole."""
    return directory.parent.name if is_pipeline(directory.parent) else directory.name


def standing(directory: Path) -> Standing:
    """Where the run in a directory stands, by its files."""
    if not (directory / RECIPE).exists():
        return Standing.NEW
    if exit_code(directory) == 0:
        return Standing.DONE
    return Standing.STOPPED if (directory / MARKER).exists() else Standing.UNFINISHED


def mark_stopped(directory: Path) -> None:
    """Write down that a person stopped the run: who retries a job for them must not start it again."""
    checkpoint.write_whole(directory / MARKER, "a person stopped this run; `logratio resume` goes on with it\n")


def unmarked(error: OSError) -> str:
    """What to say when the mark could not be written."""
    return f"the file `{MARKER}` could not be written ({error.strerror}); a retried job would go on with the run"


def forget_stop(directory: Path) -> None:
    """A person asks the run to go on."""
    (directory / MARKER).unlink(missing_ok=True)


def recorded_recipe(directory: Path) -> Recipe:
    """The recipe that a run began with. Its paths into the folder of an earlier Ray job lead into this job's.

    Raises RecipeError.
    """
    try:
        recipe = load_recipe(directory / RECIPE)
        return parse_recipe(relocated(recipe.model_dump(mode="json"))) if _job_folder() else recipe
    except RecipeError as error:
        raise RecipeError(f"{directory / RECIPE} is no recipe to go on with: {'; '.join(error.lines)}") from None


def same_recipe(directory: Path, submitted: Recipe) -> Recipe:
    """The recipe to go on with: the recorded one, with the swaps that commands made since and the dtypes that `auto`
    became on the first machine. `submitted` still has its `auto`.

    Raises RecipeError with the keys in which the submitted one differs.
    """
    recorded = recorded_recipe(directory)
    old = recorded.model_dump(mode="json")
    either = [resolve_dtypes(submitted, bf16).model_dump(mode="json") for bf16 in (True, False)]
    refuse_differences(directory, min((list(differences(old, new)) for new in either), key=len))
    return recorded


def refuse_differences(directory: Path, found: Sequence[str]) -> None:
    """Raises RecipeError with the first of the keys in which a submitted recipe differs, if there are any."""
    if found:
        more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise RecipeError(
            f"run.name: {directory} holds a run of another recipe: {'; '.join(found[:NAMED])}{more}. "
            "Choose another run.name, or undo the changes"
        )


def differences(recorded: Mapping[str, Any], submitted: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The keys in which two recipes differ, with both values. Not those of swaps that a command added, and not where a
    working directory of a Ray job was unpacked."""
    for key in dict.fromkeys((*recorded, *submitted)):
        name = f"{above}.{key}" if above else str(key)
        old, new = recorded.get(key), submitted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, name)
        elif same_source(old, new) or (new == AUTO and type(old) is int):  # a number that the run found in memory
            continue
        elif portable(old) != portable(new) and not (new is None and re.fullmatch(r"models\.\w+\.swaps\.\d+", name)):
            yield f"{name} was {shown(old)}, now {shown(new)}"


def exit_code(directory: Path) -> int | None:
    """How a run ended the last time; None where its summary does not say."""
    try:
        return json.loads((directory / SUMMARY).read_bytes()).get("exit")
    except (OSError, ValueError, AttributeError):
        return None


def _job_folder() -> str | None:
    """The folder of this Ray job's working directory; None outside of one."""
    found = JOB_FOLDER.match(f"{current_folder()}/")
    return found[0] if found else None


def relocated(value: Any) -> Any:
    """A tree whose paths into the folder of an earlier Ray job lead into this job's."""
    folder = _job_folder()
    return _relocated(value, folder) if folder else value


def _relocated(value: Any, folder: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _relocated(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_relocated(inner, folder) for inner in value]
    return JOB_FOLDER.sub(lambda _: folder, value) if isinstance(value, str) else value


def portable(value: Any) -> Any:
    """A tree whose paths do not say where a Ray job was unpacked."""
    return _relocated(value, "")
