"""Processes as /proc shows them: which run under another, and which still run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Every process under `pid`."""
    parents = {int(p.name): _parent(p) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        grown, found = bool(more), found | more
    return found - {pid}


def alive(pids: Iterable[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and _state(pid) != "Z"}


def agents_of_ray(pids: Iterable[int]) -> set[int]:
    """Those that are agents of a Ray node. They find a killed node gone a minute later, and hold nothing of a run."""
    return {pid for pid in pids if title(pid).startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))}


def title(pid: int) -> str:
    """Its command line; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"
