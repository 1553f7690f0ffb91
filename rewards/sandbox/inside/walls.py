"""Namespaces of the sandbox's own: a root with a read-only view of the interpreter, and one writable directory."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rewards.sandbox.inside import linux

_ALL = linux.NEW_MOUNTS | linux.NEW_PIDS | linux.NEW_NET | linux.NEW_IPC | linux.NEW_UTS
_BASE = "/tmp"  # any directory: what lies there is seen again once the root has moved
_OLD = "/old"
_INSIDE = 1000  # user and group that the program sees
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def separate(unprivileged: bool) -> None:
    """Enter new namespaces; children are in the new pid namespace. `unprivileged`: in a user namespace of its own,
    which needs no root. Raises OSError where that is not allowed."""
    if not unprivileged:
        linux.call("unshare", _ALL)
        return
    user, group = os.geteuid(), os.getegid()
    linux.call("unshare", _ALL | linux.NEW_USER)
    for name, line in (("setgroups", "deny"), ("uid_map", f"{_INSIDE} {user} 1"), ("gid_map", f"{_INSIDE} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def build(view: Sequence[str], disk_mib: int) -> None:
    """Move into a new root: `view` read-only, devices without effect, /tmp of `disk_mib`. Nothing else is there."""
    linux.mount("", "/", None, linux.RECURSIVE | linux.PRIVATE)
    linux.mount("tmpfs", _BASE, "tmpfs", linux.NO_SUID | linux.NO_DEV, "size=1m,nr_inodes=1024,mode=755")
    os.mkdir(_BASE + _OLD)
    linux.pivot_root(_BASE, _BASE + _OLD)
    os.chdir("/")
    os.mkdir("/tmp")
    hidden = linux.NO_SUID | linux.NO_DEV | linux.NO_EXEC
    linux.mount("tmpfs", "/tmp", "tmpfs", hidden, f"size={disk_mib}m,nr_inodes=4096,mode=1777")
    for path in view:
        _show(path)
    for device in DEVICES:
        _show(device, read_only=False)
    linux.call("umount2", _OLD.encode(), linux.DETACH)
    os.rmdir(_OLD)
    linux.mount("", "/", None, linux.REMOUNT | linux.BIND | linux.READ_ONLY | linux.NO_SUID | linux.NO_DEV)
    linux.call("sethostname", b"sandbox", 7)


def _show(path: str, read_only: bool = True) -> None:
    """A path of the old root at the same place in the new one; a link stays a link."""
    source = _OLD + path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), path)
        return
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    linux.bind(source, path)
    if read_only:
        linux.lock(path, linux.READ_ONLY | linux.NO_SUID | linux.NO_DEV)


def give_up(user: int | None) -> None:
    """Give up every privilege for good, and as root become `user`. No process of the sandbox can trace or end this
    one."""
    linux.drop_bounds()
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    linux.drop_capabilities()
    linux.prctl(linux.NO_NEW_PRIVILEGES, 1)
    linux.prctl(linux.DUMPABLE, 0)
    linux.prctl(linux.DEATH_SIGNAL, 9)
