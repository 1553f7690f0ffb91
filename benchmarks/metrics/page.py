"""The live page beside a run: its server in a process of its own, asked as a browser asks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

POLL_SECONDS = 2.0  # as POLL in orchestrator/surface/watch/static/app.js
TICKS = os.sysconf("SC_CLK_TCK")


class Reader(threading.Thread):
    """Follows a run until `stop`. `cpu_seconds` of the server, over `seconds` in which it was asked."""

    def __init__(self, run: Path) -> None:
        super().__init__(name="reader", daemon=True)
        self._run = run
        self._ended = threading.Event()
        self.cpu_seconds = self.seconds = 0.0
        self.rounds = 0

    def stop(self) -> None:
        self._ended.set()
        self.join(30.0)

    def run(self) -> None:
        while not (self._run / "status.json").exists():
            if self._ended.wait(0.5):
                return
        command = [sys.executable, "-m", "orchestrator.cli", "watch", str(self._run)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found, "logratio watch says no address"
            self._follow(server.pid, found[0])
        finally:
            server.terminate()
            server.wait(10.0)

    def _follow(self, pid: int, address: str) -> None:
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        opener.open(address, timeout=30).read()
        base, start, generation = address.partition("?")[0], 0, 0
        began, spent = time.monotonic(), _cpu(pid)
        while not self._ended.wait(POLL_SECONDS):
            opener.open(f"{base}api/runs", timeout=30).read()
            curves = f"{base}api/runs/0/curves?generation={generation}&start={start}"
            part = json.loads(opener.open(curves, timeout=30).read())
            start, generation = part["end"], part["generation"]
            self.rounds += 1
        self.cpu_seconds, self.seconds = _cpu(pid) - spent, time.monotonic() - began


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
