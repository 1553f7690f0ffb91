"""The roles of a step alone (learn, score, publish) against the machine's own limits, alternating, as JSON.

`python -m benchmarks step [--roles learn,score,publish] [--model bundled|0.6b|1.7b|4b|8b|DIRECTORY] [--device cpu|cuda]
[--packs 5,16] [--rounds 5] [--threads 2] [--clock wall|cpu] [--quick] [--out STEP.json] [--against OLD.json]`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.step import learn, publish, report, score
from benchmarks.step.case import Case
from benchmarks.step.limits import CLOCKS, Clock, Limits, measured, took
from benchmarks.step.models import BUNDLE, build

ROLES = ("learn", "score", "publish")


def main() -> int:
    asked = _asked()
    device = torch.device(asked.device)
    torch.set_num_threads(asked.threads)
    built, packs = build(asked.model, device), [int(count) for count in asked.packs.split(",")]
    makers = {
        "learn": lambda: learn.cases(built, device, packs, asked.chunk),
        "score": lambda: score.cases(built, device, packs),
        "publish": lambda: publish.cases(built),
    }
    cases = [case for role in asked.roles.split(",") for case in makers[role]()]
    found = report.of(
        asked.model, device, asked.threads, cases, _alternating(cases, device, CLOCKS[asked.clock], asked.rounds)
    )
    print(report.table(found))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    if asked.against:
        print(report.comparison(json.loads(asked.against.read_text()), found))
    return 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roles", default=",".join(ROLES))
    parser.add_argument("--model", default=BUNDLE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of the process, on a shared machine")
    parser.add_argument("--packs", default="5,16", help="sequences of 88 tokens in a row")
    for name, default in (("rounds", 5), ("threads", 2), ("chunk", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--quick", action="store_true", help="one pack, three rounds")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    asked = parser.parse_args()
    if wrong := [role for role in asked.roles.split(",") if role not in ROLES]:
        parser.error(f"no role {wrong[0]!r}; there are: {', '.join(ROLES)}")
    if asked.quick:
        asked.packs, asked.rounds = asked.packs.split(",")[0], 3
    return asked


def _alternating(
    cases: list[Case], device: torch.device, clock: Clock, rounds: int
) -> dict[str, list[tuple[float, Limits]]]:
    """Seconds of each case, and the limits measured just before, of every round but the first, which warms up."""
    found: dict[str, list[tuple[float, Limits]]] = {case.key: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            limits = measured(device, clock)
            seconds = took(case.run, device, clock)
            if number:
                found[case.key].append((seconds, limits))
            print(f"round {number}: {case.key}: {seconds:.3f} s", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
