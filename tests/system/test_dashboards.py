"""Prometheus on the alert rules, and over a job of a Ray cluster. `scripts/prometheus.sh` installs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.deploy.test_boards import ALERTS, expressions
from tests.processes import descendants
from tests.system.head import ROOT, Head, started_head, wait_for
from tests.system.prometheus import NOWHERE, Server, prometheus
from tests.system.test_jobs import Jobs, small_recipe

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
SLOW = 0.1  # seconds a token of the rollouts; the other roles take none
OF_DEATHS = ("ray_node_manager_unexpected_worker_failure_total", "ALERTS")
INTERVAL = "5000"  # ms between two exports of a process; a run tells its numbers each 5 s


def test_each_alert_fires_when_deserved_and_none_in_a_clean_run() -> None:
    promtool("test", "rules", "rules_test.yml")


def test_prometheus_takes_the_configuration() -> None:
    """Not kubernetes.yml: Debian builds Prometheus without the discovery of pods."""
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=ROOT / "deploy" / "prometheus",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_boards_over_a_ray_cluster(models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path) -> None:
    """A job over simulated members: everything that boards and alerts name is exported, and panels have data."""
    recipe = small_recipe(models, prompts, tmp_path)
    recipe["run"]["steps"] = 10_000
    recipe["rollout"]["members"] = 2
    with started_head(RAY_metrics_report_interval_ms=INTERVAL) as head, prometheus(head.folder) as server:
        found = server.of("jobs")
        run = Jobs(head, recipe, tmp_path)
        job = run.submit(seconds=SLOW)
        run.until(job, lambda: bool(found.shown("Which role is the bottleneck?")))
        # those of other objectives: test_boards_in_process.py
        unknown = {f"ray_logratio_step_{name}" for name, value in run.lines()[-1].items() if value is None}
        silent = {*NOWHERE, *unknown, "ray_logratio_reward_component"}
        run.until(job, lambda: not found.unanswered({*silent, *OF_DEATHS}))
        assert found.shown("Which role is the bottleneck?") == {"rollout": 1.0}
        assert not found.firing()
        assert {rule["name"]: rule["health"] for rule in found.rules()} == dict.fromkeys(ALERTS, "ok")

        kill_rollouts(head, found, 6)
        run.until(job, lambda: bool(found.firing()))
        assert found.firing() == {"RestartStorm"}
        run.until(job, lambda: not found.unanswered(silent))
        named = {name for _, expr in expressions() for name in re.findall(r"\bray_\w+", expr)}
        assert named - found.names() <= silent
        head.stop(job)
        head.ended(job)


def kill_rollouts(head: Head, found: Server, times: int) -> None:
    """Kill rollout members until so many were replaced."""

    def replaced() -> bool:
        for pid in descendants(head.pid):
            if "ray::SimulatedRollout" in _title(pid):
                os.kill(pid, signal.SIGKILL)
        return sum(found.ask('sum(ray_logratio_restarts_total{role="rollout"})').values()) >= times

    wait_for(replaced, f"{times} members to be replaced", 60.0)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
