"""What a user's machine must provide: writable folders, short paths for sockets, enough open files.

Every fault is a line with the path or number and the remedy.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path

from configs.load import cache_directory, home_directory
from configs.refusal import RecipeError, reason
from configs.schema import Recipe

SOCKET_BYTES = 107  # longest path of a socket
# what Ray appends to its temporary folder; the process id has up to seven digits
SESSION = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
RAY_WAITS = 3.0  # seconds from SIGTERM to SIGKILL of a job, unless the head node was started with another number
SAVED_WITHIN = 10.0  # seconds for what follows a step that was given its grace
LEAST_FILES = 1024  # open files that Ray and the engines need in a process
LONGEST_NAME = 200  # bytes of a run's name; names derived from it must fit into 255


def check_environment(recipe: Recipe, directory: Path, starts_ray: bool) -> None:
    """Raises RecipeError with a line for each thing that the run in `directory` lacks. `starts_ray`: it starts its own
    cluster here."""
    found = [_folder("run.root", directory, "set run.root to a folder that you may write to")]
    if len(recipe.run.name) > LONGEST_NAME:
        found.append(f"run.name: has {len(recipe.run.name)} characters; {LONGEST_NAME} are the most")
    found.append(_folder("LOGRATIO_CACHE", cache_directory(), "set it to a folder that you may write to"))
    if recipe.data.responses and recipe.sampled_teacher:
        found.append(_folder("data.responses", Path(recipe.data.responses), "name a folder that you may write to"))
    if starts_ray:
        found += [_sockets(), *_temporary(), _folder("HOME", home_directory() / ".ray", "set it to your own folder")]
    found.append(_open_files())
    if lines := [line for line in found if line]:
        raise RecipeError(*lines)


def job_warnings(recipe: Recipe, variables: Mapping[str, str]) -> list[str]:
    """What a Ray job lacks that a stop would need. `variables`: the environment, which the job has from its cluster."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in variables:
        return []
    wait, grace = float(variables.get("RAY_JOB_STOP_WAIT_TIME_S", RAY_WAITS)), recipe.run.grace_seconds
    if wait >= grace + SAVED_WITHIN:
        return []
    return [
        f"RAY_JOB_STOP_WAIT_TIME_S: Ray kills a job {wait:g} s after it was told to stop, a step has {grace:g} s "
        f"(run.grace_seconds) and a checkpoint takes more; start the head node with at least "
        f"RAY_JOB_STOP_WAIT_TIME_S={grace + SAVED_WITHIN:g}, or stop by `logratio stop`"
    ]


def _folder(key: str, folder: Path, remedy: str) -> str | None:
    """Why a folder cannot be made or written to; None if it can."""
    try:
        there = _nearest(folder.absolute())
    except (OSError, ValueError) as error:
        return f"{key}: {folder} cannot be used ({reason(error)}); {remedy}"
    if not there.is_dir():
        return f"{key}: {folder} cannot be made, {there} is no folder; {remedy}"
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        return f"{key}: {folder} cannot be written, {there} does not let you; {remedy}"
    return None


def _nearest(folder: Path) -> Path:
    """The path itself, or its nearest parent that exists. Raises OSError for a path without permission and for a broken
    link."""
    for path in (folder, *folder.parents):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise OSError(f"the link {path} leads nowhere") from None
            continue
        return path
    raise FileNotFoundError(str(folder))


def _ray_folder() -> tuple[str, str]:
    """The variable that sets the folder of Ray's sessions, and the folder."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if variable in os.environ:
            return variable, os.environ[variable]
    return "TMPDIR", "/tmp"


def _sockets() -> str | None:
    variable, folder = _ray_folder()
    length = len(os.fsencode(os.path.join(folder, SESSION)))
    if length <= SOCKET_BYTES:
        return None
    longest = SOCKET_BYTES - len(SESSION) - 1
    return (
        f"{variable}: {folder} has {len(os.fsencode(folder))} bytes; Ray's sockets below it would have paths of "
        f"{length}, {SOCKET_BYTES} are the most; set {variable} to a folder of at most {longest} bytes, e.g. /tmp"
    )


def _temporary() -> list[str | None]:
    variable, folder = _ray_folder()
    remedy = "set it to a folder that you may write to, e.g. /tmp"
    return [_folder(variable, Path(folder), remedy)] if folder else [f"{variable}: is empty; {remedy}"]


def _open_files() -> str | None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most >= LEAST_FILES:
        return None
    return f"open files: this shell allows {most}, a run asks for {LEAST_FILES}; raise it: ulimit -Hn {LEAST_FILES}"
