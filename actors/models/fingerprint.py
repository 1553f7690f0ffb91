"""What tells whether bytes changed on the way. BLAKE3 is as hard to deceive as SHA-256, and several times as fast on a
core that has no instructions for SHA."""

from __future__ import annotations

from typing import Any

from blake3 import blake3


def fingerprint(data: Any) -> str:
    """Hex digest of a contiguous buffer. A second for some 2 GiB: not for an event loop."""
    return blake3(memoryview(data)).hexdigest()
