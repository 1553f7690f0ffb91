"""What is saved, and the manifest that says it is whole.

checkpoints/step_N/ holds the learner's state and the orchestrator's; MANIFEST.json is written last, with a hash of
every file and the byte lengths of the logs at that point. To a resume, a folder without a whole manifest is not there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
STATE = "state.json"
METRICS = "metrics.jsonl"
HIGHEST = "policy_version"  # file that holds the highest version ever published


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: its folder, and the orchestrator's state at that point."""

    folder: Path
    state: dict[str, Any]
    metrics_bytes: int


def partial_folder(run: Path, step: int) -> Path:
    """An empty folder to write a checkpoint into, before `seal` gives it its name."""
    folder = run / "checkpoints" / f"step_{step}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def seal(run: Path, partial: Path, state: Mapping[str, Any], keep: int, pinned: int | None = None) -> Path:
    """Write state and manifest, give the folder its name, and drop all but the newest `keep` checkpoints and that of
    step `pinned`."""
    (partial / STATE).write_text(json.dumps(state, indent=1))
    open_up(partial)
    files = {str(f.relative_to(partial)): _fingerprint(f) for f in sorted(partial.rglob("*")) if f.is_file()}
    logs = {METRICS: _bytes(run / METRICS)}
    manifest = {"step": state["step"], "files": files, "logs": logs}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(*partial.rglob("*"), partial, partial.parent)
    folder = _name(partial)
    given_up = [f for f in _folders(run) if _step(f) > _step(folder)]  # of a lineage that a resume cut off
    for old in given_up:
        shutil.rmtree(old)
    for old in [f for f in _folders(run)[keep:] if _step(f) != pinned]:
        shutil.rmtree(old)
    return folder


def latest(run: Path) -> Saved | None:
    """The newest checkpoint that is whole; what is half-written or changed is passed over."""
    for partial in (run / "checkpoints").glob("step_*.partial"):
        if _read_manifest(partial) is not None:  # a kill came between its manifest and its name
            _name(partial)
    for folder in _folders(run):
        manifest = _read_manifest(folder)
        if manifest is not None:
            state = json.loads((folder / STATE).read_text())
            return Saved(folder, state, manifest["logs"][METRICS])
    return None


def claim_version(run: Path, number: int) -> None:
    """Say that `number` is about to be published: it names one set of weights, whatever becomes of this process."""
    write_whole(run / HIGHEST, str(number))


def highest_version(run: Path) -> int | None:
    """The highest policy version that was ever claimed; None before the first."""
    file = run / HIGHEST
    return int(file.read_text()) if file.exists() else None


def rewind(run: Path, saved: Saved | None) -> None:
    """Cut the logs to a checkpoint (or to nothing) and keep what is cut in *.lost. Half a checkpoint is removed."""
    metrics = run / METRICS
    length = saved.metrics_bytes if saved else 0
    if tail := metrics.read_bytes()[length:] if metrics.exists() else b"":
        with (run / f"{METRICS}.lost").open("ab") as lost:
            lost.write(tail)
        os.truncate(metrics, length)  # what stays is never written anew: it must survive a kill right here
    step = saved.state["step"] if saved else 0
    for file in sorted((run / "samples").glob("step_*.arrow")):
        if int(file.name.split(".")[0].removeprefix("step_")) > step:
            file.rename(file.with_name(f"{file.name}.lost"))
    for partial in (run / "checkpoints").glob("step_*.partial"):
        shutil.rmtree(partial)


def append_line(run: Path, line: Mapping[str, Any]) -> None:
    """Add a line to metrics.jsonl; on the disk when this returns."""
    with (run / METRICS).open("a") as metrics:
        metrics.write(json.dumps(line, allow_nan=False) + "\n")
        metrics.flush()
        os.fsync(metrics.fileno())


def beta_of(folder: Path) -> float:
    """The reference's coefficient when a checkpoint was saved."""
    return json.loads((folder / STATE).read_text())["beta"]


def newest_name(run: Path) -> str | None:
    """Folder of the newest checkpoint that has its manifest; its files are not read."""
    return next((f.name for f in _folders(run) if (f / MANIFEST).exists()), None)


def keep_recipe(run: Path, text: str) -> None:
    """Write recipe.yaml where there is none yet, so that a run that was stopped before it began can be resumed."""
    if not (run / "recipe.yaml").exists():
        run.mkdir(parents=True, exist_ok=True)
        write_whole(run / "recipe.yaml", text)


def write_whole(file: Path, text: str) -> None:
    """Write a file such that a kill leaves the old text or the new one, and nothing between; on the disk when this
    returns."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_text(text)
        _sync(partial)
        os.replace(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)  # a full disk gets its room back
        raise
    _sync(file.parent)


def _name(partial: Path) -> Path:
    """Give a whole folder its name, in place of an earlier save of its step: one of the two is always there."""
    folder = partial.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    _sync(folder.parent)  # before others are dropped for it
    return folder


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
        return None  # cut short or not ours: whatever is wrong with it, it is not whole
    return manifest if whole else None


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _sync(*paths: Path) -> None:
    """Files and folders are on the disk when this returns: a power cut leaves them whole."""
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
    """Give a whole folder that people read its name, in place of an earlier one."""
    open_up(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def open_up(folder: Path) -> None:
    """Give a folder and all that is in it the modes that this process's umask says: safetensors writes through a
    temporary file that its owner alone may read. Raises OSError."""
    umask = _own_umask()
    for path in (folder, *folder.rglob("*")):
        mode = (0o777 if path.is_dir() else 0o666) & ~umask
        if not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def _own_umask() -> int:
    """Read, and not set to be read: another thread may be making a file."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)
