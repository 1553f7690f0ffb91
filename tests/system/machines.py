"""Machines of one Ray cluster that are network namespaces of this one: each has an address and a loopback of its own,
and what one sends another goes over a cable. Processes, files and shared memory are this machine's.

A namespace lives as long as a process in it, so nothing outlives `network`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import alive
from tests.system.head import BIN, ROOT, wait_for

SUBNET = "10.213.71"  # only these namespaces have a route to it
GCS = f"{SUBNET}.1:6379"
ACTORS = """
import json, sys, ray
from ray._private.state import actors
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps(list(actors().values()), default=str))
"""


class NoNamespaces(Exception):
    """This machine lets its user make no network namespace."""


@dataclass
class Machine:
    """`holder` keeps the namespace; `inside` is put before a command that shall run in it."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]
    namespace: str
    inside: tuple[str, ...]
    folder: Path  # of Ray

    def processes(self) -> set[int]:
        """What runs on it, but for its holder."""
        pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        return {pid for pid in pids if namespace_of(pid) == self.namespace} - {self.holder.pid}

    def traffic(self) -> tuple[int, int]:
        """Bytes that came to it and that went out of it, by its cable."""
        [cable] = json.loads(_done([*self.inside, "ip", "-s", "-j", "link", "show", "eth0"]))
        return cable["stats64"]["rx"]["bytes"], cable["stats64"]["tx"]["bytes"]

    def chunks(self) -> int:
        """Pieces of objects that its object store has had from others."""
        said = [file.read_text() for file in self.folder.glob("session_2*/logs/debug_state.txt")]
        lines = [line for text in said for line in text.splitlines() if "num chunks received total" in line]
        return sum(int(line.rsplit(":", 1)[1]) for line in lines)

    def lose(self) -> set[int]:
        """Its cable goes, and every process at once; returns those. Nobody is told."""
        _done([*self.inside, "ip", "link", "set", "eth0", "down"])
        return self.kill()

    def kill(self) -> set[int]:
        """Kill every process but the holder, those too that they start meanwhile."""
        killed: set[int] = set()
        while left := alive(self.processes()):
            killed |= left
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return killed


@dataclass
class Network:
    """A switch and the machines at it."""

    environment: dict[str, str]
    folder: Path
    switch: Machine
    machines: list[Machine] = field(default_factory=list)

    def head(self, *options: str) -> Machine:
        """A machine with the head of a Ray cluster."""
        return self._started("--head", "--port", GCS.rpartition(":")[2], "--include-dashboard=false", *options)

    def worker(self, *options: str) -> Machine:
        """One more machine, of the head's cluster."""
        return self._started("--address", GCS, *options)

    def run(self, machine: Machine, *command: str, output: Path) -> subprocess.Popen[bytes]:
        with output.open("ab") as log:
            return subprocess.Popen(
                [*machine.inside, *command], env=self.environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )

    def actors(self) -> list[dict[str, Any]]:
        """What Ray has on every actor that there is or was."""
        done = subprocess.run(
            [*self.machines[0].inside, sys.executable, "-c", ACTORS, GCS],
            env=self.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def processes(self) -> set[int]:
        return set().union(*(machine.processes() for machine in self.machines))

    def close(self) -> None:
        """End everything that runs on the machines, and with it their namespaces."""
        for machine in (*self.machines, self.switch):
            machine.kill()
            machine.holder.kill()
            machine.holder.wait()

    def _started(self, *options: str) -> Machine:
        machine = self._plugged_in(len(self.machines) + 1)
        command = [str(BIN / "ray"), "start", "--block", "--node-ip-address", machine.address, "--temp-dir"]
        command += [str(machine.folder), "--object-store-memory", "150000000", *options]
        log = machine.folder / "ray.log"
        ray = self.run(machine, *command, output=log)
        wait_for(lambda: "--block" in log.read_text() or ray.poll() is not None, f"Ray on {machine.name}", 180.0)
        assert ray.poll() is None, log.read_text()
        return machine

    def _plugged_in(self, number: int) -> Machine:
        """A machine with a cable to the switch."""
        machine = _machine(f"machine{number}", f"{SUBNET}.{number}", self.folder, self.switch)
        self.machines.append(machine)
        end, there = f"port{number}", str(machine.holder.pid)
        _done([*self.switch.inside, "ip", "link", "add", end, "type", "veth", "peer", "eth0", "netns", there])
        _done([*self.switch.inside, "ip", "link", "set", end, "master", "switch", "up"])
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{machine.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            _done([*machine.inside, "ip", *words])
        return machine


@contextmanager
def network(**variables: str) -> Iterator[Network]:
    """An empty network, whose machines start with these variables and a token. Raises NoNamespaces."""
    folder = Path(tempfile.mkdtemp(prefix="lr-", dir="/tmp"))  # a short path: Ray's sockets lie below it
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {
        "PATH": f"{BIN}:{kept['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_worker_niceness": "0",  # other programs of this machine would starve them
        **variables,
    }
    try:
        switch = _machine("switch", f"{SUBNET}.254", folder)
        net = Network(environment, folder, switch)
        try:
            _done([*switch.inside, "ip", "link", "add", "switch", "type", "bridge"])
            _done([*switch.inside, "ip", "addr", "add", f"{switch.address}/24", "dev", "switch"])
            _done([*switch.inside, "ip", "link", "set", "switch", "up"])
            yield net
        finally:
            net.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def namespace_of(pid: int) -> str:
    """The network namespace of a process; empty where it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def _machine(name: str, address: str, folder: Path, beside: Machine | None = None) -> Machine:
    """A namespace without a cable, `beside` another whose user it has. Raises NoNamespaces."""
    entered = beside.inside[:-1] if beside and os.geteuid() else ()
    alone = () if entered or os.geteuid() == 0 else ("--user", "--map-root-user")
    here = namespace_of(os.getpid())
    try:
        holder = subprocess.Popen([*entered, "unshare", *alone, "--net", "sleep", "infinity"], stderr=subprocess.PIPE)
    except OSError as error:
        raise NoNamespaces(f"no network namespaces: {error}") from None
    while holder.poll() is None and namespace_of(holder.pid) in ("", here):
        time.sleep(0.01)
    if holder.poll() is not None:
        assert holder.stderr
        raise NoNamespaces(f"no network namespaces: {holder.stderr.read().decode().strip()}")
    user = ("--user", "--preserve-credentials") if os.geteuid() else ()
    inside = ("nsenter", "--target", str(holder.pid), *user, "--net")
    machine = Machine(name, address, holder, namespace_of(holder.pid), inside, folder / name)
    machine.folder.mkdir()
    return machine


def _done(command: Sequence[Any]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
