"""Which mechanism isolates programs on this machine, if any: each is tried with a program that tries to get out."""

from __future__ import annotations

import json
import secrets
import socket
import tempfile
from functools import cache

from rewards.sandbox.limits import Limits
from rewards.sandbox.mechanisms import MECHANISMS, Mechanism
from rewards.sandbox.run import SandboxError, run

REMEDY = (
    "install bubblewrap, or allow unprivileged user namespaces on this node (sysctl user.max_user_namespaces, "
    "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns; in a container a seccomp profile "
    "that allows unshare and mount)"
)

_LIMITS = Limits(cpu_seconds=10, wall_seconds=20.0, memory_mib=256, output_bytes=10_000, disk_mib=1)

_ATTEMPTS = """
import os, socket, threading

def fails(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        return True
    return False

def escapes(canary, name):
    threads = [threading.Thread(target=int) for _ in range(4)]
    [thread.start() for thread in threads]
    open("written", "w").close()
    tried = {
        "a file of this machine": fails(open, canary),
        "the root directory": fails(open, "/written", "w"),
        "a library": fails(open, os.__file__, "a"),
        "the network": fails(socket.socket, socket.AF_INET),
        "a socket of this machine": fails(socket.socket(socket.AF_UNIX).connect, name),
        "another process": fails(os.fork),
        "the environment": not os.environ,
        "processes of this machine": not os.path.exists("/proc/self") and os.getppid() == 1,
    }
    return [what for what, kept in tried.items() if not kept]
"""


class NoIsolation(RuntimeError):
    """Programs cannot be isolated here; says what was tried, and the remedy."""


@cache
def isolation() -> Mechanism:
    """The first mechanism that holds on this machine. Raises NoIsolation."""
    reasons = []
    for mechanism in MECHANISMS:
        if not (reason := mechanism.lacks() or leak(mechanism)):
            return mechanism
        reasons.append(f"{mechanism.name}: {reason}")
    raise NoIsolation(f"programs cannot be isolated here ({'; '.join(reasons)}); {REMEDY}")


def leak(mechanism: Mechanism) -> str:
    """What a program reached that it must not, or why it could not run; empty where the mechanism holds."""
    name = f"\0{secrets.token_hex(16)}"
    with tempfile.NamedTemporaryFile() as canary, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        try:
            (ending,) = run(mechanism, _ATTEMPTS, [{"call": f"escapes({canary.name!r}, {name!r})"}], _LIMITS)
        except SandboxError as error:
            return str(error).removeprefix(f"{mechanism.name}: ")
    if ending.end != "exit" or not ending.value:
        return f"a program did not run ({ending.end}: {(ending.stderr.strip().splitlines() or [''])[-1]})"
    try:
        reached = json.loads(ending.value)
    except ValueError:  # two processes gave one
        reached = ["another process"]
    return f"a program reached {', '.join(reached)}" if reached else ""
