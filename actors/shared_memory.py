"""Where weight versions pass through from a member to its engine, and what dead members left there.

Each member has a folder of its own, which it locks for life. The kernel drops the lock with the last process that holds
it, however that ends: a process id may be another's by now, or of another container that shares /dev/shm.
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
    """Where a run's weight versions pass through: shared memory where there is some. Runs of one name under two roots
    have two folders."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    tag = hashlib.sha256(os.path.abspath(root).encode()).hexdigest()[:8]
    return os.path.join(base, f"logratio-{os.getuid()}-{run}-{tag}")


class MemberFolder:
    """This member's own folder in `shared`, made now; folders there that nobody holds any more are removed."""

    def __init__(self, shared: Path) -> None:
        shared.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(shared):  # or another could take a folder for a dead one's before it is locked
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
