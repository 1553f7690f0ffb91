"""The first process of the sandbox: starts the program once a case, ends all that it left, and reports a line a case.

The program cannot end, trace or stop it. It reads no result of the program, and knows none that is expected.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.sandbox.inside import program

READY = "ready"
_SHARED = "/tmp"
_PART = 65_536  # bytes a read
_LAST_WORDS = 2_000  # bytes of standard error that are kept


@dataclass
class Pipe:
    """What comes from the program: the first `limit` bytes (`last`: the last ones), and whether it was more."""

    reader: int
    writer: int
    limit: int
    last: bool = False
    taken: bytearray = field(default_factory=bytearray)
    full: bool = False

    @classmethod
    def new(cls, limit: int, last: bool = False) -> Pipe:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        return cls(reader, writer, limit, last)

    def take(self) -> bool:
        """Read what is there. False at the end, and where nothing is there."""
        try:
            part = os.read(self.reader, _PART)
        except BlockingIOError:
            return False
        self.taken += part
        if len(self.taken) > self.limit:
            self.full = not self.last
            self.taken = self.taken[-self.limit :] if self.last else self.taken[: self.limit]
        return bool(part)


def run(job: Mapping[str, Any]) -> None:
    """Run all cases and leave this process. In the program's process it returns, and the interpreter ends as usual."""
    _alone()
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    _report(READY)
    for number, case in enumerate(job["cases"]):
        pipes = {"stdout": Pipe.new(job["output_bytes"]), "stderr": Pipe.new(_LAST_WORDS, last=True)}
        pipes["value"] = Pipe.new(job["output_bytes"])
        folder = _folder(number)
        child = os.fork()
        if child == 0:
            program.run(job, case, folder, {name: pipe.writer for name, pipe in pipes.items()})
            return
        _report(_watch(child, pipes, job))
        if folder != _SHARED:
            with contextlib.suppress(RecursionError):  # what is left counts for the cases to come
                shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _alone() -> None:
    """Leave unless this is the first process of a pid namespace: elsewhere, ending all others ends the machine's."""
    if os.getpid() != 1 or os.getppid() != 0:
        sys.exit("the sandbox has no pid namespace of its own")


def _folder(number: int) -> str:
    """A new directory for a case; /tmp itself where an earlier case left no room for one."""
    try:
        os.mkdir(folder := f"{_SHARED}/{number}")
    except OSError:
        return _SHARED
    return folder


def _report(line: Any) -> None:
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def _watch(child: int, pipes: Mapping[str, Pipe], job: Mapping[str, Any]) -> dict[str, Any]:
    """How a case ended, once nothing of it is left."""
    for pipe in pipes.values():
        os.close(pipe.writer)
    ending = _wait(child, pipes, time.monotonic() + job["wall_seconds"])
    status, used = _end_all(child)
    for pipe in pipes.values():
        while pipe.take() and not pipe.full:
            pass
        os.close(pipe.reader)
    seconds = used.ru_utime + used.ru_stime
    texts = {name: pipe.taken.decode("utf-8", "surrogateescape") for name, pipe in pipes.items()}
    return {**texts, **_named(ending, status, seconds, pipes, job), "seconds": seconds}


def _named(
    ending: str, status: int, seconds: float, pipes: Mapping[str, Pipe], job: Mapping[str, Any]
) -> dict[str, Any]:
    """`end` in one word, and the exit code (minus the signal)."""
    code = os.waitstatus_to_exitcode(status)
    if pipes["stdout"].full or pipes["value"].full:
        ending = "output"
    elif code == -signal.SIGXCPU or (code == -signal.SIGKILL and seconds > 0.9 * job["cpu_seconds"]):
        ending = "cpu"
    elif ending == "exit" and code < 0:
        ending = "signal"
    return {"end": ending, "code": code}


def _wait(child: int, pipes: Mapping[str, Pipe], deadline: float) -> str:
    """Until the program has ended, says too much or is too slow. This process ends when its keeper is gone."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    for reader in (0, ended, *(pipe.reader for pipe in pipes.values())):
        poll.register(reader, select.POLLIN)
    by_reader = {pipe.reader: pipe for pipe in pipes.values()}
    ending = ""
    while not ending:
        left = deadline - time.monotonic()
        ready = [reader for reader, _ in poll.poll(max(0.0, left) * 1000)]
        if 0 in ready:  # nothing is ever sent here: it is the end of the pipe
            os._exit(1)
        for reader in ready:
            if reader in by_reader and not by_reader[reader].take():
                poll.unregister(reader)
        if pipes["stdout"].full or pipes["value"].full:
            ending = "output"
        elif ended in ready:
            ending = "exit"
        elif left <= 0:
            ending = "wall"
    os.close(ended)
    return ending


def _end_all(child: int) -> tuple[int, resource.struct_rusage]:
    """Kill every process but this one, and wait until none is left. Returns the program's status and use."""
    _alone()
    found = None
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        try:
            pid, status, used = os.wait4(-1, 0)
        except ChildProcessError:
            break
        if pid == child:
            found = status, used
    if found is None:
        sys.exit(f"process {child} was not waited for")
    return found
