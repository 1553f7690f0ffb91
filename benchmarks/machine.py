"""What a benchmark ran on, for its JSON."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from configs.hardware import cpu_has_bf16

CPUINFO = Path("/proc/cpuinfo")


def described(*packages: str) -> dict[str, Any]:
    """Date, machine, cores that this process may use, and the versions of `packages`, by the names they are imported
    by."""
    names = packages_distributions()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "bf16_in_hardware": cpu_has_bf16(),
        "versions": {name: version(names[name][0]) for name in ("torch", *packages)},
    }


def line(found: dict[str, Any]) -> str:
    """The same as a line of text."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    bf16 = "with" if found.get("bf16_in_hardware") else "without"
    return f"{found['date'][:10]}; {found['machine']}, {found['cores']} cores, {bf16} bf16 in hardware; {versions}"


def _processor() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
