"""One run of the orchestrator's benchmark, in a process of its own: `python -m benchmarks.metrics.one ROOT ...`.

The further arguments are those of `benchmarks orchestrator`. Ray is there with and without `--reported`. Writes what
was found to ROOT/found.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.metrics.accounts import Accounts
from benchmarks.orchestrator import Watcher, arguments_of, measure, settled
from orchestrator.pools.transport import LocalTransport, RayTransport
from orchestrator.preflight import cluster
from orchestrator.surface.driver import collect_seldom


class Accountant(Watcher):
    """Writes the accounts down after each step."""

    def __init__(self, accounts: Accounts) -> None:
        super().__init__()
        self._accounts = accounts
        self.parts: list[dict[str, float]] = []

    def step(self, line: Mapping[str, Any]) -> None:
        super().step(line)
        self.parts.append(self._accounts.parts() | {"wall": time.monotonic()})


def main(root: Path, words: list[str]) -> None:
    arguments = arguments_of(words)
    os.environ.setdefault(
        "RAY_enable_metrics_collection", "1" if arguments.reported else "0"
    )  # without Ray's own dashboard
    cluster.loopback_only()
    cluster.start_local(cpus=os.cpu_count() or 1, object_store_mib=256)
    import ray

    collect_seldom()
    accounts = Accounts()
    accountant = Accountant(accounts)
    try:
        with accounts.kept():
            transport = RayTransport() if arguments.ray else LocalTransport()
            found = asyncio.run(measure(arguments, transport, accountant, root))
    finally:
        ray.shutdown()
    first, last = settled(len(accountant.lines), arguments.staleness)
    spent = {name: accountant.parts[last - 1][name] - accountant.parts[first - 1][name] for name in accountant.parts[0]}
    (root / "found.json").write_text(json.dumps(found | {"cpu_seconds": spent}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
