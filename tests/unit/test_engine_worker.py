"""An engine's process ends with the one that started it, also where nobody is left to end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.processes import alive

CHILD = "import time; from actors.engine_worker import EndsWithParent; EndsWithParent().end_with_parent(); {}"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_process_ends_with_its_parent() -> None:
    waits = CHILD.format("print(__import__('os').getpid(), flush=True); time.sleep(60)")
    command = [sys.executable, "-c", PARENT, waits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        time.sleep(1.5)
        assert alive({child}), "while its parent lives it lives"
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while alive({child}) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive({child})
