"""Failures of a full disk: recognise them, and say which disk and which checkpoint is whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.refusal import RecipeError
from orchestrator import checkpoint
from orchestrator.preflight.comparison import MIB, size

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MESSAGES = ("No space left on device", "Disk quota exceeded", "os error 28", "PytorchStreamWriter failed writing")


def is_full(failure: BaseException) -> bool:
    """Whether a failure or one of its causes is a full disk. torch and safetensors raise it as plain messages."""
    return any(
        (isinstance(error, OSError) and error.errno in FULL) or any(text in str(error) for text in MESSAGES)
        for error in _all(failure)
    )


def described(failure: BaseException, directory: Path) -> str:
    """One line: which disk is full, how much is free there, and the newest whole checkpoint."""
    return f"{_where(failure, directory)}; {_whole(directory)}; make room, then: logratio resume {directory.name}"


@contextmanager
def refused_if_full(directory: Path) -> Iterator[None]:
    """Before a run begins a full disk is a fault of its surroundings. Raises RecipeError."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        if (directory / "recipe.yaml").exists():
            raise RecipeError(described(error, directory)) from None
        where = _where(error, directory)
        raise RecipeError(f"run.root: {where}; make room, or set run.root to a folder on another disk") from None


def _where(failure: BaseException, directory: Path) -> str:
    """Which disk, and how much is free there."""
    where = next((Path(e.filename) for e in _all(failure) if isinstance(e, OSError) and e.filename), None)
    place = where if where is not None and where.is_absolute() else _fullest(directory)
    disk = _existing(place)
    return f"the disk is full at {place} (mounted at {_mount(disk)}, {size(shutil.disk_usage(disk).free)} free)"


def _whole(directory: Path) -> str:
    kept = checkpoint.newest_name(directory)
    return f"the last whole checkpoint is {kept}" if kept else "no checkpoint is whole: a resume begins anew"


def _all(failure: BaseException) -> Iterator[BaseException]:
    """A failure, the members of its group, and its causes."""
    yield failure
    if isinstance(failure, BaseExceptionGroup):
        for inner in failure.exceptions:
            yield from _all(inner)
    if cause := failure.__cause__ or failure.__context__:
        yield from _all(cause)


def _fullest(directory: Path) -> Path:
    """A path on a full disk, of those that a run writes to; the run's directory if none is full."""
    places = [directory, Path("/dev/shm"), Path(tempfile.gettempdir())]
    return next((p for p in places if shutil.disk_usage(_existing(p)).free < MIB), directory)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _mount(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.ismount(folder))
