"""The start of a run on this machine: seconds from the command to the first step by phase, and CPU seconds by process.

`python -m benchmarks start [--recipe configs/quickstart.yaml] [--rounds 3] [--out START.json]`
Each round is a process of its own, which is ended when its first step begins. A phase is what a run says of itself;
"the command" is what it takes to say the first. CPU seconds are those of the processes that live at the end, by name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

ROOT = Path(__file__).resolve().parent.parent
COMMAND, STEP = "the command", "the first step"
PHASES = {  # how a phase begins on the screen: its name here
    "run ": "preflight",
    "starting Ray": "Ray",
    "starting the engines": "engines",
    "loading the first weights": "first weights",
    "evaluating ": "first evaluation",
    "training": STEP,
}
TICKS = os.sysconf("SC_CLK_TCK")
Round = dict[str, dict[str, float]]  # {"seconds": by phase, "cpu": by process}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rounds = [started(asked.recipe) for _ in range(asked.rounds)]
    found = machine.described("vllm", "transformers", "deepspeed", "ray") | {"rounds": rounds}
    print(table(found))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


def started(recipe: Path) -> Round:
    """Start a run of its own and end it at its first step."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(recipe), "run.name=start", f"run.root={root}"]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
            assert run.stdout
            said = [(COMMAND, began), *_phases(run.stdout)]
            cpu = cpu_seconds(run.pid)
            for _ in range(2):  # gently, and then at once
                run.send_signal(signal.SIGINT)
            run.stdout.read()
    return {"seconds": {name: after - at for (name, at), (_, after) in itertools.pairwise(said)}, "cpu": cpu}


def _phases(lines: Iterable[str]) -> Iterator[tuple[str, float]]:
    """(name, time) of each phase as it begins, and of the first step. Raises SystemExit where none comes."""
    for line in lines:
        name = next((PHASES[start] for start in PHASES if line.startswith(start)), None)
        if name is not None:
            yield name, time.monotonic()
        if name == STEP:
            return
    raise SystemExit("benchmarks: the run ended before its first step; start it by hand to see why")


def cpu_seconds(root: int) -> dict[str, float]:
    """CPU seconds of a process and all below it, with those that it has waited for, by name."""
    processes = dict(_processes())
    found: defaultdict[str, float] = defaultdict(float)
    for pid, (_, name, seconds) in processes.items():
        above = pid
        while above in processes and above != root:
            above = processes[above][0]
        if above == root:
            found["driver" if pid == root else name] += seconds
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _processes() -> Iterator[tuple[int, tuple[int, str, float]]]:
    """(pid, (parent, name, CPU seconds)) of all that can be read."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            numbers = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:  # it has ended
            continue
        ticks = sum(int(number) for number in numbers[11:15])
        yield int(folder.name), (int(numbers[1]), _name(words), ticks / TICKS)


def _name(words: Sequence[str]) -> str:
    """Of a process by its command line. Ray shows an actor as `ray::Rollout.submit` while it does so."""
    if words[0].startswith("ray::"):
        return words[0].partition(".")[0]
    return Path(next((word for word in words if word.endswith(".py")), words[0])).name


def table(found: Mapping[str, Any]) -> str:
    """Medians of all rounds, one line a phase and a process."""
    rounds: Sequence[Round] = found["rounds"]
    seconds, cpu = (
        {name: _median(rounds, part, name) for name in dict.fromkeys(name for one in rounds for name in one[part])}
        for part in ("seconds", "cpu")
    )
    lines = ["| phase | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in seconds.items()]
    lines += [f"| all | {statistics.median(sum(one['seconds'].values()) for one in rounds):.1f} |"]
    lines += ["", "| process | CPU seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in cpu.items()]
    lines += [f"| all | {statistics.median(sum(one['cpu'].values()) for one in rounds):.1f} |"]
    return "\n".join(lines)


def _median(rounds: Sequence[Round], part: str, name: str) -> float:
    return statistics.median(one[part].get(name, 0.0) for one in rounds)


if __name__ == "__main__":
    main()
