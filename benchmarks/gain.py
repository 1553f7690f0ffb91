"""What a pipeline's student has become on a held-out set, stage by stage, from the directory of its run.

`python -m benchmarks gain RUN [--metric SET.NAME] [--out GAIN.json]`
Nothing is run: the numbers are those of the evaluations before and after each stage. The interval of the gain over all
stages is over prompts alone (percentile bootstrap, Efron 1979); it says nothing of another seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from configs.load import load_tree
from orchestrator.evaluation.intervals import CONFIDENCE, bootstrap
from orchestrator.surface.research.runs import ReadRun, read_run

HEAD = (
    "| pipeline, held-out prompts | before | after | gain, and its interval over prompts | measured |",
    "|---|---|---|---|---|",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--metric", default="sums.avg@4")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = machine.described("vllm", "transformers", "deepspeed", "ray") | measured(asked.run, asked.metric)
    print(table(found))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


def measured(directory: Path, metric: str) -> dict[str, Any]:
    """The metric before and after each stage of a pipeline's run, and the gain over all with its interval. `seconds`
    are those of all stages. Raises SystemExit where a stage was not measured before and after."""
    stages = list(load_tree(directory / "recipe.yaml")["stages"])
    runs = [read_run(directory / f"{directory.name}-{number:02d}-{name}") for number, name in enumerate(stages, 1)]
    points = {name: _points(run, metric) for name, run in zip(stages, runs, strict=True)}
    first, last = points[stages[0]][0], points[stages[-1]][-1]
    if first.keys() != last.keys():
        raise SystemExit(f"{metric}: the first stage was measured on other prompts than the last")
    low, high = bootstrap([last[prompt] - first[prompt] for prompt in first], seed=0)
    return {
        "pipeline": directory.name,
        "metric": metric,
        "seed": runs[0].recipe.run.seed,
        "prompts": len(first),
        "stages": {name: {"before": _mean(found[0]), "after": _mean(found[-1])} for name, found in points.items()},
        "seconds": sum(json.loads((run.directory / "summary.json").read_text())["seconds"] for run in runs),
        "gain": {"mean": _mean(last) - _mean(first), "low": low, "high": high},
    }


def table(found: Mapping[str, Any]) -> str:
    """The stages of one pipeline."""
    lines = [
        f"`{found['pipeline']}`, `{found['metric']}`, {found['prompts']} prompts, seed {found['seed']}, "
        f"{found['seconds'] / 60:.0f} minutes:",
        "",
        "| stage | before | after |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {of['before']:.3f} | {of['after']:.3f} |" for name, of in found["stages"].items()]
    return "\n".join([*lines, "", f"Gain {_gain(found)}: {CONFIDENCE:.0%}, over prompts."])


def row(found: Mapping[str, Any]) -> str:
    """One pipeline in the README."""
    first, *_, last = found["stages"].values()
    what = f"`{found['pipeline']}`, {found['prompts']} prompts, `{found['metric'].partition('.')[2]}`"
    when = f"{found['seconds'] / 60:.0f} minutes on {found['cores']} cores, {found['date'][:10]}"
    return f"| {what} | {first['before']:.3f} | {last['after']:.3f} | {_gain(found)} | {when} |"


def _gain(found: Mapping[str, Any]) -> str:
    gain = found["gain"]
    return f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def _points(run: ReadRun, metric: str) -> list[Mapping[str, float]]:
    found = [point.values for point in run.curve(metric).points]
    if len(found) < 2:
        raise SystemExit(f"{run.directory.name} was not measured before and after; it has {len(found)} evaluations")
    return found


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


if __name__ == "__main__":
    main()
