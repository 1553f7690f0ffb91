"""Base of all members: the common methods, and the redirection of a process's output.

Members are plain classes that know neither Ray nor each other. Arguments and results are values, so the same class runs
in a Ray actor or in a test's process.

Methods: start stop renew load sleep wake drain. One that a role does not need does nothing. Roles that serve many
callers at once make them coroutines; the others serve one call at a time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any


class Member:
    """Base of all roles."""

    def attach_log(self, path: str) -> int:
        """Send this process's output, and that of the processes it will start, to a file. Returns the process id."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(log, number)
        os.close(log)
        return os.getpid()

    def ping(self) -> int:
        """The process id; answers while the process lives."""
        return os.getpid()

    def load(self, version: int, headers: Sequence[Any], *buckets: Any) -> Any:
        """Serve a new weight version. Returns the version served."""
        return version

    def sleep(self) -> Any:
        """Give accelerator memory back; `wake` takes it again."""

    def wake(self) -> Any:
        """Undo `sleep`."""

    def drain(self) -> Any:
        """Wait until no accepted work is left."""

    def renew(self) -> Any:
        """Forget the run that it served, before another one that is made of the same; its weights come anew."""

    def stop(self) -> Any:
        """Release everything the process holds outside itself."""
