"""The memory of this machine's GPUs, as the driver tells it. No CUDA is started, and no GPU is reserved."""

from __future__ import annotations

import subprocess

from orchestrator.preflight.comparison import MIB

ASKED = ("nvidia-smi", "--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits")
PATIENCE = 20.0  # seconds; a driver that nobody keeps loaded takes some


def smallest_gpu() -> int | None:
    """Bytes of the smallest GPU; None if there is none, or if it does not say."""
    try:
        said = subprocess.run(ASKED, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read(said.stdout) if said.returncode == 0 else None


def read(text: str) -> int | None:
    """Bytes of the smallest GPU of nvidia-smi's lines, MiB each. None if one does not say, as where it shares the
    host's memory, and where GPUs are cut up (MIG): the parts are smaller."""
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines() if line.strip()]
    if not rows or any(len(row) != 2 or not row[0].isdecimal() or row[1] == "Enabled" for row in rows):
        return None
    return min(int(memory) for memory, _ in rows) * MIB
