"""What a program must not reach: a file, a folder, sockets, a process and a variable of this machine."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

VARIABLE = "SANDBOX_TEST_SECRET"


@dataclass(frozen=True)
class Targets:
    """Names of them, as a program may know them."""

    canary: str
    folder: str
    port: int
    path: str
    abstract: str
    victim: int
    secret: str


@dataclass(frozen=True)
class World:
    targets: Targets
    listeners: tuple[socket.socket, ...]
    victim: subprocess.Popen[bytes]
    before: frozenset[int]  # processes that other tests have left

    def harm(self) -> list[str]:
        """What programs have done, if anything."""
        targets, found = self.targets, []
        if Path(targets.canary).read_text() != targets.secret:
            found.append("the canary was changed")
        if names := set(os.listdir(targets.folder)) - {"canary", "socket"}:
            found.append(f"files were left: {names}")
        if self.victim.poll() is not None:
            found.append("a process outside was ended")
        if any(_contacted(listener) for listener in self.listeners):
            found.append("a listener outside was contacted")
        if left := [p.cmdline() for p in _children() if p.pid not in self.before | {self.victim.pid}]:
            found.append(f"processes were left: {left}")
        return found


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _contacted(listener: socket.socket) -> bool:
    try:
        listener.accept() if listener.type == socket.SOCK_STREAM else listener.recv(1)
    except BlockingIOError:
        return False
    return True


@contextmanager
def world(folder: Path) -> Iterator[World]:
    secret, abstract = secrets.token_hex(16), secrets.token_hex(8)
    folder.chmod(0o777)
    (folder / "canary").write_text(secret)
    (folder / "canary").chmod(0o666)
    os.environ[VARIABLE] = secret
    before = frozenset(child.pid for child in _children())
    with ExitStack() as stack:
        tcp, udp = _listener(stack, socket.AF_INET), _listener(stack, socket.AF_INET, socket.SOCK_DGRAM)
        path, named = _listener(stack, socket.AF_UNIX), _listener(stack, socket.AF_UNIX)
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        path.bind(str(folder / "socket"))
        os.chmod(folder / "socket", 0o777)
        named.bind(f"\0{abstract}")
        for listener in (tcp, path, named):
            listener.listen()
        victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10000)"])
        stack.callback(lambda: (victim.kill(), victim.wait()))
        targets = Targets(
            str(folder / "canary"), str(folder), port, str(folder / "socket"), abstract, victim.pid, secret
        )
        yield World(targets, (tcp, udp, path, named), victim, before)
    del os.environ[VARIABLE]


def _listener(stack: ExitStack, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    listener = stack.enter_context(socket.socket(family, kind))
    listener.setblocking(False)
    return listener
