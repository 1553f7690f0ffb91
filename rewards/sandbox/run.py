"""Runs one program in a sandbox, from outside: starts it, hands the job over, reads a line a case, ends it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewards.sandbox import view
from rewards.sandbox.inside.init import READY
from rewards.sandbox.limits import Limits
from rewards.sandbox.mechanisms import Mechanism

_START_SECONDS = 30.0  # from the start of a process to its first line, on a machine that is busy
_END_SECONDS = 5.0
_EXPANDED = 6  # bytes that a byte of output may take as JSON
_MORE_BYTES = 100_000  # of a line, beside output and value
_NOTHING: dict[str, Any] = {"end": "gone", "code": 0, "stdout": "", "stderr": "", "value": "", "seconds": 0.0}


class SandboxError(RuntimeError):
    """The sandbox did not start; nothing is known about the program."""


@dataclass(frozen=True)
class Ending:
    """How a case ended. `end`: exit, signal, cpu, wall, output (too much), total (no time was left) or gone (the
    sandbox ended early). `value`: JSON that the program claims its call gave, as text. `seconds` of CPU."""

    end: str
    code: int
    stdout: str
    stderr: str
    value: str
    seconds: float


def run(
    mechanism: Mechanism, program: str, cases: Sequence[dict[str, str]], limits: Limits
) -> Generator[Ending, None, None]:
    """One ending for each case, in order, as they come; a closed iterator ends the sandbox. A case has `input`,
    standard input, or `call`, an expression. Raises SandboxError if the sandbox does not start."""
    started = time.monotonic()
    process = _start(mechanism, program, cases, limits)
    try:
        lines = _Lines(process.stdout.fileno(), limits)  # type: ignore[union-attr]
        if lines.next(started + _START_SECONDS) != READY:
            _end(process)
            raise SandboxError(f"{mechanism.name}: {_words(process) or 'ended without a word'}")
        deadline = time.monotonic() + limits.total_seconds
        for _ in cases:
            line = lines.next(deadline)
            end = "total" if time.monotonic() >= deadline else "gone"
            yield Ending(**(line if isinstance(line, dict) else {**_NOTHING, "end": end}))
    finally:
        _end(process)
        process.stdout.close()  # type: ignore[union-attr]
        process.stderr.close()  # type: ignore[union-attr]


def _start(
    mechanism: Mechanism, program: str, cases: Sequence[dict[str, str]], limits: Limits
) -> subprocess.Popen[bytes]:
    job = {"program": program, "cases": list(cases), **asdict(limits)}
    job["walls"] = {"view": view.shown(), "disk_mib": limits.disk_mib, "as_root": mechanism.as_root}
    descriptor = os.memfd_create("job")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(json.dumps(job).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        return subprocess.Popen(
            mechanism.command(limits.disk_mib, descriptor),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            pass_fds=(descriptor,),
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"{mechanism.name}: {error}") from None
    finally:
        os.close(descriptor)


class _Lines:
    """Lines of JSON of the first process; each no longer than its limits allow."""

    def __init__(self, descriptor: int, limits: Limits) -> None:
        self._descriptor = descriptor
        self._most = 2 * _EXPANDED * limits.output_bytes + _MORE_BYTES
        self._read = bytearray()

    def next(self, deadline: float) -> Any:
        """The next line; None at the end, at the deadline, and for a line that is no JSON or too long."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or len(self._read) > self._most or not poll.poll(left * 1000):
                return None
            if not (part := os.read(self._descriptor, 2**18)):
                return None
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the sandbox: its first process leaves when its standard input ends, and the kernel kills all others."""
    process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _words(process: subprocess.Popen[bytes]) -> str:
    """The last line that a sandbox said before it failed."""
    lines = process.stderr.read().decode(errors="replace").strip().splitlines()  # type: ignore[union-attr]
    return lines[-1] if lines else ""
