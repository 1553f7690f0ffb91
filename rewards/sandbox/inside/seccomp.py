"""A filter of system calls for the program: what it refuses is the kernel's surface that no test of a program needs."""

from __future__ import annotations

import ctypes
import errno
import os

from rewards.sandbox.inside import linux
from rewards.sandbox.inside.syscalls import AUDIT, NUMBERS, number

# Refused for some arguments only; all other calls of the table are refused always.
_BY_ARGUMENT = {"clone", "clone3", "fork", "vfork", "prlimit64", "socket"}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, JEQ, JGE, JSET, RET
_NUMBER, _MACHINE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the low half of the first argument
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000  # the first number of x86's second table
_NAMESPACES = 0x7E020080  # all CLONE_NEW* bits
_THREAD = 0x00010000  # CLONE_THREAD
_UNIX = 1  # AF_UNIX

Step = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def install(one_process: bool) -> None:
    """Filter this process and its children for good. `one_process` refuses to fork; threads are allowed. Raises OSError
    where the kernel or the machine has no such filter."""
    steps = program(one_process)
    code = b"".join(s.to_bytes(2, "little") + bytes((t, f)) + k.to_bytes(4, "little") for s, t, f, k in steps)
    buffer = ctypes.create_string_buffer(code)

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    wanted = Program(len(steps), ctypes.addressof(buffer))
    linux.call("prctl", linux.SECCOMP, ctypes.c_ulong(2), ctypes.byref(wanted), ctypes.c_ulong(0), ctypes.c_ulong(0))


def program(one_process: bool) -> list[Step]:
    """The filter as steps of BPF."""
    machine = AUDIT.get(os.uname().machine, 0)
    steps: list[Step] = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for name in NUMBERS:
        if name not in _BY_ARGUMENT:
            steps += _refused(name, errno.EPERM)
    steps += _refused("clone3", errno.ENOSYS)  # its arguments lie in memory, out of sight; libraries then use clone
    steps += _with_argument("clone", _clone(one_process))
    if one_process:
        steps += _refused("fork", errno.EPERM) + _refused("vfork", errno.EPERM)
    steps += _with_argument("socket", [(_EQUAL, 1, 0, _UNIX), _error(errno.EACCES)])
    steps += _with_argument("prlimit64", [(_EQUAL, 1, 0, 0), _error(errno.EPERM)])  # 0: this process
    return [*steps, (_RETURN, 0, 0, _ALLOW)]


def _clone(one_process: bool) -> list[Step]:
    steps: list[Step] = [(_ANY_BIT, 0, 1, _NAMESPACES), _error(errno.EPERM)]
    return [*steps, (_ANY_BIT, 1, 0, _THREAD), _error(errno.EPERM)] if one_process else steps


def _error(code: int) -> Step:
    return _RETURN, 0, 0, _ERROR | code


def _refused(name: str, code: int) -> list[Step]:
    known = number(name)
    return [] if known is None else [(_EQUAL, 0, 1, known), _error(code)]


def _with_argument(name: str, steps: list[Step]) -> list[Step]:
    """Steps that read the call's first argument, and allow what they do not refuse."""
    block: list[Step] = [(_LOAD, 0, 0, _ARGUMENT), *steps, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(block), number(name) or 0), *block]
