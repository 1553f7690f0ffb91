"""Measured rounds as plain values, as a table, and against an earlier run."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import machine
from benchmarks.step.case import Case
from benchmarks.step.limits import Limits

NOISE = 0.1  # of a share; less is no difference

Rounds = Sequence[tuple[float, Limits]]


def of(
    model: str, device: torch.device, threads: int, cases: Sequence[Case], rounds: Mapping[str, Rounds]
) -> dict[str, Any]:
    gpu = {"machine": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    return {
        **machine.described("transformers"),
        **gpu,
        "model": model,
        "threads": threads,
        "peak_mib": _peak(device),
        "cases": {case.key: _case(case, rounds[case.key]) for case in cases},
    }


def _case(case: Case, rounds: Rounds) -> dict[str, float | None]:
    """Medians over rounds. `share`: of the limit that was measured in the same round."""
    seconds = statistics.median(took for took, _ in rounds)
    return {
        "seconds": seconds,
        "tokens_per_second": case.tokens / seconds if case.tokens else None,
        "flops": case.flops,
        "bytes": case.bytes,
        "flops_per_second_at_most": statistics.median(limits.flops for _, limits in rounds),
        "bytes_per_second_at_most": statistics.median(limits.bytes for _, limits in rounds),
        "share": statistics.median(limits.seconds(case.flops, case.bytes) / took for took, limits in rounds),
    }


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def table(found: Mapping[str, Any]) -> str:
    """A Markdown table of a run."""
    lines = ["| case | s | tokens/s | share of the limit |", "|---|---|---|---|"]
    for key, case in found["cases"].items():
        rate = case["tokens_per_second"]
        lines.append(f"| {key} | {case['seconds']:.3f} | {f'{rate:.0f}' if rate else ''} | {case['share']:.0%} |")
    said = f"{found['model']}, {found['machine']}, {found['threads']} threads, peak {found['peak_mib']:.0f} MiB"
    return "\n".join([*lines, said])


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Shares of the limit against those of an earlier run: another load of the machine cancels out."""
    lines = []
    for key in before["cases"].keys() & after["cases"].keys():
        old, new = before["cases"][key]["share"], after["cases"][key]["share"]
        verdict = "the same" if abs(new / old - 1.0) <= NOISE else "faster" if new > old else "SLOWER"
        lines.append(f"{key}: {old:.0%} -> {new:.0%} of the limit, {new / old:.2f}x, {verdict}")
    return "\n".join(sorted(lines)) or "no case in common"
