"""check, status, scale and stop against a live run of simulated members, then resume to its end."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cli.test_kill_and_resume import _lines, _logratio, _wait_for
from tests.listening import listeners, table, unlisted, unseen
from tests.processes import descendants, title


@pytest.mark.system
@pytest.mark.timeout(300)
def test_commands_reach_a_live_run(models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path) -> None:
    file, directory = tmp_path / "recipe.yaml", tmp_path / "live"
    file.write_text(yaml.safe_dump(_recipe(models, prompts, tmp_path)))

    checked = _logratio("check", str(file))
    output, _ = checked.communicate(timeout=60)
    assert checked.returncode == 0 and "learner" in output and "24 prompts" in output, output

    run = _simulated(0.15, "run", str(file))
    _wait_for(lambda: len(_lines(directory)) >= 2, run)
    control = directory / "control.json"
    assert control.stat().st_mode & 0o777 == 0o600

    found, ports = listeners({run.pid, *descendants(run.pid)}), table("On one machine")
    assert not unlisted(found, ports), "docs/security.md has every port"
    assert not unseen(found, [row for row in ports if "Ray" in row.who and "free" in row.port]), (
        "and none that is not there"
    )

    _wait_for(lambda: "rollout-0" in _said("status", directory), run)  # it is drawn every few seconds
    _wait_for(lambda: re.search(r'^ray_logratio_step_step\{.*\brun="live"', _exported(run.pid), re.M), run)

    assert "scaling" in _said("scale", directory, "rollout=2", "scorer.teacher=2")
    _wait_for(lambda: "rollout-1" in _said("status", directory), run)
    assert "learner: does not change its size" in _said("scale", directory, "learner=2", code=2)
    assert "teacher: no such role" in _said("scale", directory, "teacher=2", code=2)
    _wait_for(lambda: "the bottleneck" in _said("status", directory), run)

    assert "is no directory" in _said("swap", directory, "teacher=/no/such", code=2)
    assert "after the step under way, teacher becomes" in _said("swap", directory, f"teacher={models['poet']}")
    _wait_for(lambda: f"on: {models['poet']}" in _said("status", directory).replace("\n", ""), run)
    assert "is alive" in _said("resume", directory, code=2)

    assert "stopping" in _said("stop", directory)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 3, output
    stopped_at = len(_lines(directory))
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["exit"] == 3 and [swap["path"] for swap in summary["swaps"]] == [str(models["poet"])]
    assert "is not running" in _said("stop", directory, code=2)

    resumed = _simulated(0.0, "resume", str(directory))
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    steps = [line["step"] for line in _lines(directory)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > stopped_at


def _exported(pid: int) -> str:
    """What Prometheus reads, over loopback, of the cluster that a process has started."""
    paths = {found[0] for below in descendants(pid) if (found := re.search(r"/\S*?/session_[^/\s]+", title(below)))}
    (session,) = {Path(path).resolve() for path in paths if Path(path).is_dir()}
    try:
        (cluster,) = json.loads((session / "prom_metrics_service_discovery.json").read_text())
        pages = [urllib.request.urlopen(f"http://{target}/metrics", timeout=10).read() for target in cluster["targets"]]
    except OSError:  # not yet
        return ""
    assert pages and all(target.startswith("127.0.0.1:") for target in cluster["targets"])
    return b"".join(pages).decode()


def _simulated(seconds: float, *arguments: str) -> subprocess.Popen[str]:
    """A command over simulated members, whose rollouts sleep so long a token."""
    return _logratio(*arguments, module=("tests.cli.simulated", str(seconds)))


def _said(command: str, directory: Path, *arguments: str, code: int = 0) -> str:
    process = _logratio(command, str(directory), *arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    time.sleep(0.1)
    return output


def _recipe(models: dict[str, Path], prompts: dict[str, Path], root: Path) -> dict:
    small = {"cpus": 0.1}
    return {
        "run": {"name": "live", "root": str(root), "steps": 120},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models["teacher"])}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 4},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher", "support": "sampled"},
        "learner": {"optimizer": {"lr": 0.01}, "resources": small},
        "rollout": {"max_context_tokens": 64, "resources": small},
        "scorer": {"teacher": {"max_context_tokens": 64, "resources": small}},
        "reward": {"resources": small},
        "checkpoint": {"every": 50},
    }
