"""Ways to isolate a program: each is a command line for the first process of a sandbox."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from rewards.sandbox import view
from rewards.sandbox.inside.walls import DEVICES

_SEEN_AT = "/sandbox"  # where bubblewrap shows the code of the first process
_INSIDE = "1000"  # user and group that the program sees


@dataclass(frozen=True)
class Mechanism:
    """`lacks` says in a few words why it cannot be tried here, or is empty. `command` gives the arguments for a size of
    the writable directory (MiB) and the job's file descriptor."""

    name: str
    lacks: Callable[[], str]
    command: Callable[[int, int], list[str]]
    as_root: bool = False


def _python(root: str, start: str, job: int) -> list[str]:
    boot = f"import sys; sys.path.insert(0, {root!r}); from rewards.sandbox.inside import start; start.{start}()"
    return [view.interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", boot, str(job)]


def _bubblewrap(disk_mib: int, job: int) -> list[str]:
    walls = [
        "--unshare-user",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    walls += ["--uid", _INSIDE, "--gid", _INSIDE, "--hostname", "sandbox", "--as-pid-1", "--new-session", "--clearenv"]
    walls += ["--cap-drop", "ALL", "--die-with-parent"]
    for path in view.shown():
        walls += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for device in DEVICES:
        walls += ["--dev-bind", device, device]
    walls += ["--ro-bind", view.INSIDE, f"{_SEEN_AT}/rewards/sandbox/inside"]
    walls += ["--size", str(disk_mib * 2**20), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return [shutil.which("bwrap") or "bwrap", *walls, "--", *_python(_SEEN_AT, "within", job)]


def _namespaces(disk_mib: int, job: int) -> list[str]:
    return _python(view.ROOT, "namespaces", job)


def _root() -> bool:
    return os.geteuid() == 0


MECHANISMS = (
    Mechanism("root", lambda: "" if _root() else "not root", _namespaces, as_root=True),
    Mechanism(
        "bubblewrap",
        lambda: (
            "as root it leaves the program root's id, which no limit on processes holds for"
            if _root()
            else ("" if shutil.which("bwrap") else "bwrap is not installed")
        ),
        _bubblewrap,
    ),
    Mechanism(
        "user namespaces",
        lambda: "as root its limit on processes does not hold; run as another user" if _root() else "",
        _namespaces,
    ),
)
