"""Shared memory through which weight versions pass from a member to its engine.

Each member locks a folder of its own for life, so that later members can remove the folders of dead ones. The kernel
drops a lock with the last process that holds it, however it ends. A process id would not do: it may be reused, or be of
another container that shares /dev/shm.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def shared_folder(run: str, root: str) -> str:
    """Path of a run's folder: in /dev/shm, or in the temporary directory if there is none. Runs of one name under two
    roots have two folders."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    tag = hashlib.sha256(os.path.abspath(root).encode()).hexdigest()[:8]
    return os.path.join(base, f"logratio-{os.getuid()}-{run}-{tag}")


class MemberFolder:
    """Creates this member's folder in `shared`, and removes folders there that no process locks."""

    def __init__(self, shared: Path) -> None:
        shared.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(shared):  # or another member could remove the new folder before it is locked
            for folder in list(shared.iterdir()):
                _remove_if_dead(folder)
            self.path = Path(tempfile.mkdtemp(dir=shared))
            self._held = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._held, fcntl.LOCK_EX)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._held)


def _remove_if_dead(folder: Path) -> None:
    try:
        with _locked(folder, fcntl.LOCK_NB):
            shutil.rmtree(folder)
    except (BlockingIOError, FileNotFoundError):
        pass  # its member lives, or has just removed it


@contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(held)
