"""Where an interpreter of the sandbox begins: `namespaces` makes the walls, `within` finds them made by bubblewrap.

The job is a JSON object in the file descriptor that the last argument names.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from rewards.sandbox.inside import init, walls

_OWN_USER = 2**30  # as root: a program's user id is this plus a process id, so nobody else's


def namespaces() -> None:
    """Make namespaces; the child, their first process, builds the root and runs the job, this process waits for it."""
    job = _job()
    spec = job["walls"]
    user = _OWN_USER + os.getpid() if spec["as_root"] else None
    walls.separate(user is None)
    first = os.fork()
    if first == 0:
        os.setsid()  # signals to a process group cross namespaces
        walls.build(spec["view"], spec["disk_mib"])
        walls.give_up(user)
        init.run(job)
        return
    os.close(1)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)


def within() -> None:
    """Run the job as the first process of a pid namespace that is there already."""
    job = _job()
    walls.give_up(None)
    init.run(job)


def _job() -> Mapping[str, Any]:
    with os.fdopen(int(sys.argv[-1]), "rb") as file:
        return json.loads(file.read())
