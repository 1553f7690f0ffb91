"""The program's own process: limits, the filter of system calls, then the program as `__main__`.

The value of a call goes out on a descriptor of its own, as plain JSON. Whatever the program does to this module, it can
only change what it claims; the claim is compared outside.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import types
from collections.abc import Mapping
from typing import Any

from rewards.sandbox.inside import seccomp

_OURS = "rewards"  # the package that this code comes from; the program finds it neither loaded nor on its path
_INPUT, _VALUE = 0, 3
_THREADS = 16  # of a program that may not fork
_OTHERS = 2  # processes of the sandbox's own that count as the same user's
_MIB = 2**20
_FILES = 64
_STACK_MIB = 64


def run(job: Mapping[str, Any], case: Mapping[str, Any], folder: str, out: Mapping[str, int]) -> None:
    """Run one case in this process. Raises SystemExit as the program does, or with 1 after an exception of its."""
    _connect(case.get("input") or "", out)
    os.chdir(folder)
    os.environ.clear()  # the interpreter sets its locale there
    _limit(job)
    space = _as_main()
    try:
        exec(compile(job["program"], "program.py", "exec"), space)
        if case.get("call") is not None:
            _answer(eval(compile(case["call"].strip(), "call", "eval"), space))
    except SystemExit:
        raise
    except BaseException as error:
        _say(error)
        sys.exit(1)


def _connect(text: str, out: Mapping[str, int]) -> None:
    """Standard input holds `text`; 1, 2 and 3 lead to the first process; every other descriptor is closed."""
    given = os.memfd_create("input")
    os.write(given, text.encode("utf-8", "surrogatepass")) if text else None
    os.lseek(given, 0, os.SEEK_SET)
    ends = [os.dup(number) for number in (given, out["stdout"], out["stderr"], out["value"])]
    for wanted, number in enumerate(ends):
        os.dup2(number, wanted)
    os.closerange(_VALUE + 1, 65_536)
    sys.stdin = sys.__stdin__ = _stream(0, "r", "surrogateescape")
    sys.stdout = sys.__stdout__ = _stream(1, "w", "surrogateescape")
    sys.stderr = sys.__stderr__ = _stream(2, "w", "backslashreplace")


def _stream(number: int, mode: str, errors: str) -> Any:
    return open(number, mode, encoding="utf-8", errors=errors, closefd=False)


def _limit(job: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tasks = _THREADS if job["processes"] == 1 else job["processes"]
    limits = {
        resource.RLIMIT_CPU: (job["cpu_seconds"], job["cpu_seconds"] + 1),
        resource.RLIMIT_AS: job["memory_mib"] * _MIB,
        resource.RLIMIT_FSIZE: job["file_mib"] * _MIB,
        resource.RLIMIT_NOFILE: _FILES,
        resource.RLIMIT_NPROC: tasks + _OTHERS,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_STACK: _STACK_MIB * _MIB,
    }
    for kind, wanted in limits.items():
        soft, hard = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        most = resource.getrlimit(kind)[1]
        bound = [value if most == resource.RLIM_INFINITY else min(value, most) for value in (soft, hard)]
        resource.setrlimit(kind, (bound[0], bound[1]))
    seccomp.install(job["processes"] == 1)


def _as_main() -> dict[str, Any]:
    """The names of a new `__main__`, beside which nothing of this package is loaded."""
    main = types.ModuleType("__main__")
    for name in [name for name in sys.modules if name.split(".")[0] == _OURS]:
        del sys.modules[name]
    sys.modules["__main__"] = main
    sys.argv = ["program.py"]
    sys.path[:] = [path for path in sys.path if path != _root()]
    return main.__dict__


def _root() -> str:
    return __file__.removesuffix("/rewards/sandbox/inside/program.py")


def _answer(value: Any) -> None:
    """Send the value of a call, and leave at once: its answer is all that counts."""
    data = json.dumps(plain(value)).encode()
    while data:
        data = data[os.write(_VALUE, data) :]
    os._exit(0)


def plain(value: Any) -> Any:
    """A value as JSON: bool, int, float, str, None, lists (tuples too) and mappings with str or int keys, by exact
    type. Raises TypeError for any other type: a subclass may lie about itself."""
    kind = type(value)
    if kind in (bool, int, float, str, type(None)):
        return value
    if kind in (list, tuple):
        return [plain(item) for item in value]
    if kind is dict and all(type(key) in (str, int) for key in value):
        return {str(key): plain(item) for key, item in value.items()}
    raise TypeError(f"{kind.__name__} is no plain JSON; call e.g. sorted(...) or list(...) around it in the test")


def _say(error: BaseException) -> None:
    """The traceback of an exception, from the program's own frames on."""
    import traceback

    below = error.__traceback__.tb_next if error.__traceback__ else None
    traceback.print_exception(type(error), error, below, file=sys.stderr)
