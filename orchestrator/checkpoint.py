"""Checkpoints on disk, and the manifest that makes one valid.

checkpoints/step_N/ holds the learner's state and the orchestrator's. MANIFEST.json is written last, with a hash of
every file and the byte lengths of the logs. A resume ignores folders whose manifest is missing or does not match.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
STATE = "state.json"
METRICS = "metrics.jsonl"
HIGHEST = "policy_version"  # file with the highest version that was ever claimed


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: its folder, the orchestrator's state, and the length of metrics.jsonl."""

    folder: Path
    state: dict[str, Any]
    metrics_bytes: int


def partial_folder(run: Path, step: int) -> Path:
    """Make an empty folder to write a checkpoint into; `seal` names it."""
    folder = run / "checkpoints" / f"step_{step}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def seal(run: Path, partial: Path, state: Mapping[str, Any], keep: int, pinned: Collection[int] = frozenset()) -> Path:
    """Write state and manifest, and name the folder. Then remove all but the newest `keep` checkpoints and those of the
    steps `pinned`."""
    (partial / STATE).write_text(json.dumps(state, indent=1))
    open_up(partial)
    files = {str(f.relative_to(partial)): _fingerprint(f) for f in sorted(partial.rglob("*")) if f.is_file()}
    logs = {METRICS: _bytes(run / METRICS)}
    manifest = {"step": state["step"], "files": files, "logs": logs}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(*partial.rglob("*"), partial, partial.parent)
    folder = _name(partial)
    given_up = [f for f in _folders(run) if _step(f) > _step(folder)]  # made before a resume from an earlier step
    for old in given_up:
        shutil.rmtree(old)
    for old in [f for f in _folders(run)[keep:] if _step(f) not in pinned]:
        shutil.rmtree(old)
    return folder


def latest(run: Path) -> Saved | None:
    """The newest whole checkpoint; None without one."""
    for partial in (run / "checkpoints").glob("step_*.partial"):
        if _read_manifest(partial) is not None:  # whole, but killed before it was named
            _name(partial)
    for folder in _folders(run):
        manifest = _read_manifest(folder)
        if manifest is not None:
            state = json.loads((folder / STATE).read_text())
            return Saved(folder, state, manifest["logs"][METRICS])
    return None


def claim_version(run: Path, number: int) -> None:
    """Write that `number` is about to be published, so that no later process gives it to other weights."""
    write_whole(run / HIGHEST, str(number))


def highest_version(run: Path) -> int | None:
    """The highest version that was ever claimed; None before the first."""
    file = run / HIGHEST
    return int(file.read_text()) if file.exists() else None


def rewind(run: Path, saved: Saved | None) -> None:
    """Cut the logs back to a checkpoint (or to nothing), keeping what is cut in *.lost. Remove half-written
    checkpoints."""
    metrics = run / METRICS
    length = saved.metrics_bytes if saved else 0
    if tail := metrics.read_bytes()[length:] if metrics.exists() else b"":
        with (run / f"{METRICS}.lost").open("ab") as lost:
            lost.write(tail)
        os.truncate(metrics, length)  # in place: a kill right here must not lose the rest
    step = saved.state["step"] if saved else 0
    for file in sorted(file for name in ("step", "scores") for file in (run / "samples").glob(f"{name}_*.arrow")):
        if int(file.name.split(".")[0].partition("_")[2]) > step:
            file.rename(file.with_name(f"{file.name}.lost"))
    for partial in (run / "checkpoints").glob("step_*.partial"):
        shutil.rmtree(partial)


def append_line(run: Path, line: Mapping[str, Any]) -> None:
    """Append a line to metrics.jsonl, synced to disk."""
    with (run / METRICS).open("a") as metrics:
        metrics.write(json.dumps(line, allow_nan=False) + "\n")
        metrics.flush()
        os.fsync(metrics.fileno())


def folder_of(run: Path, step: int) -> Path | None:
    """The whole checkpoint of a step; None without one."""
    folder = run / "checkpoints" / f"step_{step}"
    return folder if _read_manifest(folder) is not None else None


def beta_of(folder: Path) -> float:
    """The reference's coefficient when a checkpoint was saved."""
    return json.loads((folder / STATE).read_text())["beta"]


def newest_name(run: Path) -> str | None:
    """Folder name of the newest checkpoint with a manifest; its files are not read."""
    return next((f.name for f in _folders(run) if (f / MANIFEST).exists()), None)


def keep_recipe(run: Path, text: str) -> None:
    """Write recipe.yaml if there is none, so that a run that was stopped before it began can be resumed."""
    if not (run / "recipe.yaml").exists():
        run.mkdir(parents=True, exist_ok=True)
        write_whole(run / "recipe.yaml", text)


def write_whole(file: Path, text: str) -> None:
    """Write a file atomically: a kill leaves the old text or the new one. Synced to disk."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_text(text)
        _sync(partial)
        os.replace(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)  # frees a full disk
        raise
    _sync(file.parent)


def _name(partial: Path) -> Path:
    """Rename a whole folder, replacing an earlier save of its step."""
    folder = partial.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    _sync(folder.parent)  # before older ones are removed
    return folder


def steps_saved(run: Path) -> list[int]:
    """The steps after which there is a checkpoint, ascending; whether it is whole, `folder_of` says."""
    return sorted(map(_step, _folders(run)))


def _folders(run: Path) -> list[Path]:
    found = [f for f in (run / "checkpoints").glob("step_*") if f.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda f: -_step(f))


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        whole = all(_fingerprint(folder / name) == mark for name, mark in manifest["files"].items())
        whole = whole and STATE in manifest["files"] and METRICS in manifest["logs"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # any damage means: not whole
    return manifest if whole else None


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _sync(*paths: Path) -> None:
    """fsync files and folders, so that a power cut leaves them whole."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError as error:
            if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot sync a folder
                raise
        finally:
            os.close(number)


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename a whole folder that people read, replacing an earlier one."""
    open_up(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def open_up(folder: Path) -> None:
    """Set the modes of a folder and its contents by this process's umask: safetensors leaves files that only their
    owner can read. Raises OSError."""
    umask = _own_umask()
    for path in (folder, *folder.rglob("*")):
        mode = (0o777 if path.is_dir() else 0o666) & ~umask
        if not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def _own_umask() -> int:
    """From /proc: os.umask would have to set it, and another thread may be making a file."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)
