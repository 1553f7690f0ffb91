"""What runs with and without metrics cost, in shares of a driver's CPU. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

PARTS = {
    "loop": "status, and its way to the control actor",
    "trackers": "metrics to Prometheus",
    "files": "status.json",
    "native": "threads of Ray, less those of runs without metrics",
    "page": "the live page's server, a process of its own",
}

HEAD = (
    "| the orchestrator alone (members sleep) | samples/s | with status, metrics, page | their share of CPU | on |",
    "|---|---|---|---|---|",
)

Run = Mapping[str, Any]


def cost(runs: Sequence[Run]) -> dict[str, Any]:
    """Means over runs. `shares`: of the driver's CPU, by part; `difference`: of whole runs, a sample."""
    without, with_them = [run for run in runs if not run["reported"]], [run for run in runs if run["reported"]]
    native = mean(share(run, "native") for run in without)
    shares = {name: mean(share(run, name) for run in with_them) for name in ("loop", "trackers", "files")}
    shares["native"] = mean(share(run, "native") for run in with_them) - native
    shares["page"] = mean(page(run) for run in with_them)
    before, after = (mean(run["driver_cpu_ms_per_sample"] for run in of) for of in (without, with_them))
    return {
        "driver_cpu_ms_per_sample": {"without": before, "with": after},
        "samples_per_second": {
            "without": mean(run["samples_per_second"] for run in without),
            "with": mean(run["samples_per_second"] for run in with_them),
        },
        "shares": shares,
        "share": sum(shares.values()),
        "difference": after / before - 1.0,
    }


def share(run: Run, part: str) -> float:
    return run["cpu_seconds"][part] / run["cpu_seconds"]["driver"]


def page(run: Run) -> float:
    """The page's CPU a second, of the driver's."""
    seconds, spent = run["page"], run["cpu_seconds"]
    return (seconds["cpu_seconds"] / seconds["wall"]) / (spent["driver"] / spent["wall"]) if seconds["wall"] else 0.0


def line(run: Run) -> str:
    name = "with metrics" if run["reported"] else "without"
    return (
        f"{name:12} {run['samples_per_second']:7.0f} samples/s, driver {run['driver_cpu_ms_per_sample']:.4f} CPU ms a "
        f"sample, {run['cpu_seconds']['driver']:.1f} CPU s in {run['cpu_seconds']['wall']:.1f} s"
    )


def table(found: Mapping[str, Any]) -> str:
    """A Markdown table of `cost`."""
    rows = [f"| {PARTS[name]} | {share:.2%} |" for name, share in found["shares"].items()]
    rate, spent = found["samples_per_second"], found["driver_cpu_ms_per_sample"]
    said = (
        f"driver, CPU ms a sample: {spent['without']:.4f} without, {spent['with']:.4f} with "
        f"({found['difference']:+.1%}); samples/s: {rate['without']:.0f} and {rate['with']:.0f}"
    )
    return "\n".join(
        ["| part | share of the driver's CPU |", "|---|---|", *rows, f"| all | {found['share']:.2%} |", "", said]
    )


def row(found: Mapping[str, Any]) -> str:
    """A row of the README's table."""
    cost, where = found["cost"], f"{found['cores']} cores, {found['date'][:10]}"
    rate = cost["samples_per_second"]
    return f"| {found['members']} | {rate['without']:,.0f} | {rate['with']:,.0f} | {cost['share']:.1%} | {where} |"
