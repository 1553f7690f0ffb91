"""Modes of files that a run leaves for people: what the umask gives, whatever a library made of them.

safetensors writes through a temporary file that its owner alone may read.
"""

from __future__ import annotations

from pathlib import Path

FILE, FOLDER = 0o666, 0o777


def open_up(folder: Path) -> None:
    """Give a folder and all that is in it the modes that this process's umask says. Raises OSError."""
    umask = own_umask()
    for path in (folder, *folder.rglob("*")):
        mode = (FOLDER if path.is_dir() else FILE) & ~umask
        if not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def own_umask() -> int:
    """Read, and not set to be read: another thread may be making a file."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)
