"""Calls of Linux that Python lacks, by ctypes. Each raises OSError with its name."""

from __future__ import annotations

import ctypes
import os

from rewards.sandbox.inside.syscalls import number

NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000  # CLONE_NEW*
NEW_USER, NEW_PIDS, NEW_NET = 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC = 1, 2, 4, 8  # MS_*, and MOUNT_ATTR_*: the same numbers
REMOUNT, BIND, RECURSIVE, PRIVATE = 0x20, 0x1000, 0x4000, 0x40000  # MS_*
DETACH = 2  # MNT_DETACH
DEATH_SIGNAL, DUMPABLE, NO_NEW_PRIVILEGES, SECCOMP, DROP_BOUND = 1, 4, 38, 22, 24  # PR_*
AT_RECURSIVE = 0x8000

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """A function of the C library by name; -1 becomes an OSError."""
    result = getattr(_libc, name)(*arguments)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


def bind(source: str, target: str) -> None:
    mount(source, target, None, BIND | RECURSIVE)


def lock(target: str, attributes: int) -> None:
    """Set mount attributes on a mount and on all below it. Needs Linux 5.12."""
    attr = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)  # struct mount_attr: set, clear, propagation, user namespace
    arguments = (ctypes.c_long(number("mount_setattr") or 0), -100, os.fsencode(target), AT_RECURSIVE)
    call("syscall", *arguments, attr, ctypes.c_size_t(32))


def pivot_root(new: str, old: str) -> None:
    call("syscall", ctypes.c_long(number("pivot_root") or 0), os.fsencode(new), os.fsencode(old))


def prctl(option: int, *arguments: int) -> None:
    call("prctl", option, *(ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]))


def drop_bounds() -> None:
    """Empty the bounding set, as far as this process may; no_new_privileges holds in either case."""
    for capability in range(64):
        try:
            prctl(DROP_BOUND, capability)
        except OSError:  # not allowed, or beyond the last one
            return


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    call("capset", header, (ctypes.c_uint32 * 6)())
