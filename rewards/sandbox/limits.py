"""What a program may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one case: `cpu_seconds` and `memory_mib` (address space) of each process, `wall_seconds`, `output_bytes` that
    it prints or returns, `file_mib` a file. Of all cases of a program: `disk_mib` of its directory, `total_seconds`.

    `processes` 1 refuses to fork and allows 16 threads; more is the number of processes and threads together."""

    cpu_seconds: int = 5
    wall_seconds: float = 10.0
    total_seconds: float = 60.0
    memory_mib: int = 512
    processes: int = 1
    output_bytes: int = 2**20
    file_mib: int = 16
    disk_mib: int = 64
