"""A program and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from rewards.sandbox.limits import Limits

USUAL = Limits(cpu_seconds=10, wall_seconds=30.0, memory_mib=256, output_bytes=100_000, file_mib=4, disk_mib=8)


@dataclass(frozen=True)
class Made:
    """`passes`: whether it should pass all of `tests`."""

    source: str
    tests: list[dict[str, Any]]
    passes: bool
    limits: Limits = field(default=USUAL)

    def slow(self) -> Made:
        """For a program that never ends by itself."""
        return replace(self, limits=replace(self.limits, cpu_seconds=1, wall_seconds=0.7))
