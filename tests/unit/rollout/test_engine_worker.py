"""An engine's process ends with the actor that started it, also where nobody is left to end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import alive

WORKER = """
import os, sys, time
from actors.rollout.engine_worker import EndsWithActor
EndsWithActor().end_with(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
"""
ENGINE = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
ACTOR = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:], str(os.getpid())])"


@pytest.mark.parametrize("between", [[], [ENGINE]], ids=["its child", "its engine's child"])
def test_a_worker_ends_with_its_actor(between: list[str]) -> None:
    command = [sys.executable, "-c", ACTOR, *between, WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as actor:
        assert actor.stdout
        worker = int(actor.stdout.readline())
        time.sleep(0.5)
        assert alive({worker}), "while its actor lives it lives"
        os.kill(actor.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while alive({worker}) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive({worker})
