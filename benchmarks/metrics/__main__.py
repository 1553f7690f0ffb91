"""What status, metrics and the live page cost a driver of 512 members: runs without and with them in turns, as JSON.

`python -m benchmarks metrics [--ray] [--rounds 2] [--samples N] [--out FILE]`, and arguments of `orchestrator`

All are CPU seconds of steps in which the pipeline neither fills nor empties, so that other load of the machine does not
count. The cost is measured twice: by thread and task within the runs that have them, and as the difference of the runs.
Each run is a process of its own. Members sleep, so a share is of the driver's CPU alone, not of that of models.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.metrics import report
from benchmarks.metrics.page import Reader

SECONDS = 600  # of one run, at most


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--ray", action="store_true", help="members are actors, 16 rollouts of 256")
    parser.add_argument("--out", type=Path)
    asked, further = parser.parse_known_args()
    words = ["--samples", str(asked.samples), *["--ray"] * asked.ray, *further]
    runs: list[dict[str, Any]] = []
    for _ in range(asked.rounds):
        runs += [_run(words), _run([*words, "--reported"])]
        print(report.line(runs[-2]), report.line(runs[-1]), sep="\n", file=sys.stderr, flush=True)
        if asked.out:  # after each round: a machine that others use may end this
            asked.out.write_text(json.dumps(_found(asked.ray, words, runs), indent=1) + "\n")
    print(report.table(report.cost(runs)))
    return 0


def _found(ray: bool, words: list[str], runs: list[dict[str, Any]]) -> dict[str, Any]:
    return machine.described("ray") | {
        "load": os.getloadavg()[0],
        "members": "16 rollouts, actors over Ray" if ray else "512 rollouts in the driver's process",
        "arguments": words,
        "cost": report.cost(runs),
        "runs": runs,
    }


def _run(words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root, reported = Path(folder), "--reported" in words
        reader = Reader(root / "scale")
        if reported:
            reader.start()
        command = [sys.executable, "-m", "benchmarks.metrics.one", str(root), *words]
        try:
            subprocess.run(command, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
        finally:
            if reported:
                reader.stop()
        found = json.loads((root / "found.json").read_text())
        page = {"cpu_seconds": reader.cpu_seconds, "wall": reader.seconds, "rounds": reader.rounds}
        return {"reported": reported, **found, "page": page if reported else None}


if __name__ == "__main__":
    sys.exit(main())
