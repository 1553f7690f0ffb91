"""A real Prometheus over runs that misbehave, and some that do not: each alert fires in the run that deserves it, and
in no other. The rules are those of deploy/prometheus on a time scale of their own: two hours are half a minute.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from orchestrator.pools.layout import MemberSpecs
from scripts.boards import alerts
from scripts.boards.queries import names
from tests.deploy.test_boards import ALERTS
from tests.system.misbehaving import (
    BrokenLearner,
    DriftingRollout,
    FarRollout,
    HangingLearner,
    StillbornRollout,
    members,
    one_uniform,
)
from tests.system.prometheus import Server, firing
from tests.system.told import Told, export_to_this_process, scraped

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]
TIMES = alerts.Times(scale=1 / 200, window=4.0)
SECONDS = 70.0  # for all alerts to fire
AFTERWARDS = 3.0  # seconds in which no other one may
CLEAN = "clean"


@dataclass(frozen=True)
class Life:
    """A run, and the `alerts` that it deserves. `changes`: of its recipe; `deaths`: members that are killed; `killed`:
    after how many seconds its driver is; `ends`: it makes its last step."""

    alerts: frozenset[str]
    members: MemberSpecs = field(default_factory=members)
    changes: Mapping[str, Any] = field(default_factory=dict)
    deaths: int = 0
    killed: float = math.inf
    ends: bool = False


def deserves(*alerts: str, **how: Any) -> Life:
    return Life(frozenset(alerts), **how)


LIVES = {
    CLEAN: deserves(),
    "done": deserves(changes={"run": {"steps": 12}}, ends=True),
    "done-early": deserves(
        changes={"run": {"stop": [{"metric": "seconds_step", "above": 0.0, "for_steps": 12}]}}, ends=True
    ),
    "hangs": deserves("StepOverdue", members=members(HangingLearner)),
    "stillborn": deserves("NoFirstStep", members=members(rollout=StillbornRollout)),
    "killed": deserves("RunGone", killed=10.0),
    "starves": deserves("LearnerStarving", members=members(SimulatedLearner, speeds=Speeds(rollout=0.05))),
    "far": deserves(
        "LogprobGapHigh", "CheckpointTooOld", members=members(rollout=FarRollout), changes={"checkpoint": {"every": 0}}
    ),
    "drifts": deserves("LogprobGapDoubled", "TruncationDoubled", members=members(rollout=DriftingRollout)),
    "breaks": deserves("LossNotFinite", members=members(BrokenLearner)),
    "lies": deserves("CanaryFailed", members=members(scorer=one_uniform())),
    "dies": deserves("RestartStorm", deaths=10),
}


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    export_to_this_process(monkeypatch)
    (rules := tmp_path / "rules.yml").write_text(alerts.text(TIMES))
    (ray := tmp_path / "ray").mkdir()
    with scraped(ray, rules) as server:
        yield server


def test_each_alert_fires_in_the_run_that_deserves_it_and_in_no_other(found: Server, tmp_path: Path) -> None:
    assert {alert for life in LIVES.values() for alert in life.alerts} == ALERTS.keys() - {"Spilling"}
    began = time.time()
    asyncio.run(_all_lives(found, tmp_path, began))
    raised = found.raised(began, time.time())
    assert firing(raised) == {run: life.alerts for run, life in LIVES.items() if life.alerts}, raised
    assert CLEAN not in raised, "an alert of the clean run was pending"
    assert not unknown_to(found, CLEAN), "a rule is silent because it reads nothing"


async def _all_lives(found: Server, root: Path, began: float) -> None:
    """All runs side by side, until every alert has fired, and a little longer."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))  # all runs wait in threads
    over = asyncio.Event()

    async def lives(name: str, life: Life) -> None:
        told = Told(root, name, life.members, life.deaths, **life.changes)
        await told.lives(lambda: over.is_set() or time.time() > began + life.killed, 2 * SECONDS, life.ends)

    async with asyncio.TaskGroup() as tasks:
        for name, life in LIVES.items():
            tasks.create_task(lives(name, life))
        await _all_deserved(found, began)
        await asyncio.sleep(AFTERWARDS)
        over.set()


async def _all_deserved(found: Server, began: float) -> None:
    """Wait until every run has what it deserves, or SECONDS have passed."""
    wanted = {(run, alert) for run, life in LIVES.items() for alert in life.alerts}
    while time.time() < began + SECONDS:
        fired = firing(await asyncio.to_thread(found.raised, began, time.time()))
        if wanted <= {(run, alert) for run, alerts in fired.items() for alert in alerts}:
            return
        await asyncio.sleep(1.0)


def unknown_to(found: Server, run: str) -> set[str]:
    """Metrics of ours that rules read, and that a run does not have."""
    read = {name for rule in ALERTS.values() for name in names(rule["expr"]) if name.startswith("ray_logratio_")}
    return {name for name in read if not found.ask(f'{name}{{run="{run}"}}')}
