"""What every member of every pool has in common: the verbs, and where its output goes.

Members are plain classes. They know neither Ray nor each other; arguments arrive as values and results leave as
values, so the same class runs in a Ray actor, or in a test's own process.

Verbs: start stop load sleep wake drain. A verb that means nothing to a role does nothing. Roles that serve many
callers at once make them coroutines; the others stay synchronous, one call at a time.
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
        """Answers while the process lives; its id."""
        return os.getpid()

    def load(self, version: int, headers: Sequence[Any], *buckets: Any) -> Any:
        """Serve a new weight version. Returns the version served."""
        return version

    def sleep(self) -> Any:
        """Give accelerator memory back; `wake` takes it again."""

    def wake(self) -> Any:
        """Undo `sleep`."""

    def drain(self) -> Any:
        """Return when no accepted work is left."""

    def stop(self) -> Any:
        """Release everything the process holds outside itself."""
