"""The age of what is being sampled is found without a look at each response, whatever died before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.simulated.known import Speeds
from orchestrator.run import Run
from tests.unit.simulation import Simulation, recipe


def test_the_oldest_response_is_the_first_of_some_member(tmp_path: Path) -> None:
    ages: list[tuple[float, float]] = []

    def look(run: Run, line: Mapping[str, Any]) -> None:
        assert run.stage and run.pools.rollout
        intake, now = run.stage.rollouts.intake, time.monotonic()
        asked = [response.submitted for work in intake._work.values() for response in work.running.values()]
        ages.append((intake.oldest(now), max((now - since for since in asked), default=0.0)))
        if line["step"] == 3:  # its responses are asked for again, behind others
            victim = run.pools.rollout.members[0]
            asyncio.get_running_loop().create_task(simulation.transport.kill(victim.actors))

    speeds = Speeds(rollout=0.002)
    simulation = Simulation(recipe(tmp_path, max_staleness=3), look, speeds=speeds)
    assert simulation.go() == 0
    assert all(found == expected for found, expected in ages) and any(found > 0.0 for found, _ in ages)
