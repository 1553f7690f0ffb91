"""A Ray cluster of its own, started by `ray start --head` as a person does, and jobs that are submitted to it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass
class Head:
    """`address`: of the job server; `metrics`: of Ray's exporter; `folder`: Ray's temporary one."""

    environment: dict[str, str]
    address: str
    metrics: str
    pid: int
    folder: Path
    package: str = ""  # the working directory, once it is uploaded

    def submit(self, *entrypoint: str) -> str:
        """`ray job submit` without waiting; returns the job's id. Later ones go to the job server directly, with the
        working directory that the first one uploaded: the command takes seconds to import Ray."""
        if self.package:
            wanted = {"entrypoint": shlex.join(entrypoint), "runtime_env": {"working_dir": self.package}}
            return json.loads(self._call("/api/jobs/", "POST", json.dumps(wanted).encode()))["submission_id"]
        command = [str(BIN / "ray"), "job", "submit", "--address", self.address, "--working-dir", ".", "--no-wait"]
        return self._submitted([*command, "--", *entrypoint], time.monotonic() + 90.0)

    def submit_line(self, line: str) -> str:
        """A person's `ray job submit`, which waits for the job's end; returns the job's id."""
        return self._submitted(shlex.split(line), time.monotonic() + 90.0)

    def _submitted(self, command: Sequence[str], until: float) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        said = done.stdout + done.stderr
        if "No available agent" in said and time.monotonic() < until:  # the head node has just started
            time.sleep(1.0)
            return self._submitted(command, until)
        found = re.search(r"Job '(raysubmit_\w+)' submitted", said)
        package = re.search(r"Uploading package (gcs://\S+\.zip)", said)
        assert found and package, said
        self.package = package[1]
        return found[1]

    def stop(self, job: str) -> None:
        self._call(f"/api/jobs/{job}/stop", "POST")

    def job(self, job: str) -> dict[str, Any]:
        """What the job server says: `status`, `driver_exit_code`."""
        return json.loads(self._call(f"/api/jobs/{job}"))

    def jobs(self) -> list[dict[str, Any]]:
        """What it says of every job that was submitted."""
        return json.loads(self._call("/api/jobs/"))

    def logs(self, job: str) -> str:
        return json.loads(self._call(f"/api/jobs/{job}/logs"))["logs"]

    def ended(self, job: str, seconds: float = 120.0) -> tuple[str, int | None]:
        """Status and exit code of a job, once it has ended."""
        wait_for(lambda: self.job(job)["status"] in ENDED, f"{job} to end", seconds)
        found = self.job(job)
        return found["status"], found["driver_exit_code"]

    def scrape(self) -> str:
        """The page of Ray's metrics exporter; empty until it listens."""
        try:
            with urllib.request.urlopen(self.metrics, timeout=30) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            return ""

    def _call(self, path: str, method: str = "GET", body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


@contextmanager
def started_head(store: int = 300_000_000, **variables: str) -> Iterator[Head]:
    """A head node on loopback, with a token. Its processes are gone afterwards. `store`: bytes of its object store."""
    folder = tempfile.mkdtemp(prefix="lr-", dir="/tmp")  # a short path: Ray's sockets lie below it
    dashboard, metrics = free_port(), free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {
        "PATH": f"{BIN}:{kept['PATH']}",
        "PYTHONPATH": str(ROOT),  # an upload leaves tests/ out
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        **variables,
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", "0"]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--num-cpus", "8"]
    command += ["--metrics-export-port", str(metrics), "--object-store-memory", str(store), "--temp-dir", folder]
    for port in ("--ray-client-server-port", "--dashboard-agent-listen-port"):  # their defaults may be taken
        command += [port, str(free_port())]
    log = Path(folder) / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        wait_for(lambda: _answers(dashboard) or head.poll() is not None, "the head node", 90.0)
        assert head.poll() is None, log.read_text()
        addresses = (f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics")
        yield Head(environment, *addresses, head.pid, Path(folder))
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
