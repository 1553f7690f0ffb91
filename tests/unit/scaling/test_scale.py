"""The orchestrator over 50,000 samples on simulated members: its memory stays flat and nothing is left over."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.orchestrator import arguments_of, measure
from orchestrator.pools.transport import LocalTransport

FLAT_MIB = 24  # the allocator's own ebb and flow; a sample kept by mistake is 2 KiB, so 30,000 of them are 60 MiB


@pytest.mark.timeout(280)
def test_memory_is_flat_over_fifty_thousand_samples() -> None:
    small = ["--rollouts", "32", "--scorers", "4", "--batch", "1024", "--group", "8", "--staleness", "3"]
    arguments = arguments_of([*small, "--samples", "51200", "--token-seconds", "0.002", "--coalesce-ms", "20"])
    measured = asyncio.run(measure(arguments, LocalTransport()))
    assert measured["samples"] >= 50_000
    assert measured["memory_mib_at_end"] - measured["memory_mib_after_quarter"] < FLAT_MIB
