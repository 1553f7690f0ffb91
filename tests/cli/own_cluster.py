"""A driver in a process of its own, with a Ray cluster of its own: a process has one, and the tests have theirs."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.processes import agents_of_ray, alive, descendants

LONGEST = 240.0  # seconds
ENDING = 20.0  # seconds until Ray's processes have ended


def drive(module: str, folder: Path, *arguments: str) -> None:
    """Run `python -m module *arguments` to its end. Fails where that fails, with its output, or leaves a process;
    the output is in `folder`."""
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback
    }
    environment.pop("RAY_ADDRESS", None)
    with (folder / "output").open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdout=output,
            stderr=output,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        code, started = _followed(driver)
    assert code == 0, (folder / "output").read_text()[-4000:]
    assert len(started) > 5, "a cluster was seen"
    assert not _left(started)


def _followed(driver: subprocess.Popen[bytes]) -> tuple[int, set[int]]:
    """Its exit code, and every process that it was seen to have: once it has ended, they are no longer under it."""
    started: set[int] = set()
    deadline = time.monotonic() + LONGEST
    while True:
        started |= descendants(driver.pid)
        try:
            return driver.wait(timeout=0.5), started
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                for pid in (driver.pid, *alive(started)):
                    os.kill(pid, signal.SIGKILL)
                raise


def _left(pids: set[int]) -> set[int]:
    deadline = time.monotonic() + ENDING
    while (left := alive(pids) - agents_of_ray(pids)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left
