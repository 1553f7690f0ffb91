"""The life of a run as jobs of a Ray cluster: submit, scale, stop, submit again, resume, kill, submit again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.test_boards import expressions
from tests.processes import alive, descendants
from tests.system.head import ENDED, ROOT, Head, started_head, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
STEPS = 30


@pytest.fixture
def head() -> Iterator[Head]:
    with started_head(RAY_metrics_report_interval_ms="1000") as found:  # engines of a short run are seen
        yield found
        below = descendants(found.pid)
    wait_for(lambda: not alive(below), "the cluster's processes to end", 30.0)


def test_a_run_lives_through_its_jobs(
    head: Head, models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path
) -> None:
    run = Jobs(head, small_recipe(models, prompts, tmp_path), tmp_path)

    first = run.submit(seconds=1.0)
    run.until(first, lambda: run.steps() >= 2)
    assert "is alive" in run.refused(seconds=0.0), "a second job of a live run"
    assert "scaling" in run.command("scale", "rollout=2")
    run.until(first, lambda: "rollout-1" in run.command("status"))
    run.command("stop")
    assert head.ended(first) == ("FAILED", 3)
    assert "stopped at step" in head.logs(first) and "step 2/" in head.logs(first)

    stopped_at = run.steps()
    again = run.submit(seconds=0.0)
    assert head.ended(again) == ("FAILED", 3), "what a person stopped is not started by a retry"
    assert "logratio resume jobs" in head.logs(again) and run.steps() == stopped_at

    resumed = run.submit(seconds=0.3, command=("resume", str(run.directory)))
    run.until(resumed, lambda: run.steps() > stopped_at)
    head.stop(resumed)
    assert head.ended(resumed) == ("STOPPED", None)
    wait_for(lambda: run.summary().get("exit") == 3, "the stopped run's summary")
    taken_away = run.steps()

    killed = run.submit(seconds=0.3)
    run.until(killed, lambda: run.steps() > taken_away)
    os.kill(json.loads((run.directory / "lock").read_text())["pid"], signal.SIGKILL)
    assert head.ended(killed) == ("FAILED", 128 + signal.SIGKILL)

    last = run.submit(seconds=0.0)
    assert head.ended(last) == ("SUCCEEDED", 0), head.logs(last)
    assert [line["step"] for line in run.lines()] == list(range(1, STEPS + 1))

    written = run.files()
    done = run.submit(seconds=0.0)
    assert head.ended(done) == ("SUCCEEDED", 0)
    assert "is done" in head.logs(done) and run.files() == written, "it changes nothing"
    assert "run.steps was 30, now 31" in run.refused(seconds=0.0, overrides=("run.steps=31",))
    submitted = [(job, job["submission_id"]) for job in head.jobs() if job["submission_id"]]
    said = json.dumps([[job, head.logs(name)] for job, name in submitted])
    token = head.environment["RAY_AUTH_TOKEN"]
    assert len(submitted) >= 8 and token not in said and not _files_with(token.encode(), tmp_path)


def test_the_line_of_the_readme_makes_a_run(
    head: Head, models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path
) -> None:
    """On real engines, whose own metrics leave beside the run's."""
    (line,) = re.findall(r"^ray job submit .*$", (ROOT / "README.md").read_text(), re.M)
    recipe, root = tmp_path / "recipe.yaml", tmp_path / "runs"
    recipe.write_text(yaml.safe_dump(small_recipe(models, prompts, tmp_path / "other")))
    for written, here in {"http://127.0.0.1:8265": head.address, "recipe.yaml": recipe, "/shared/runs": root}.items():
        assert line.count(written) == 1
        line = line.replace(written, str(here))
    job, seen = exported_during(head, lambda: head.submit_line(f"{line} run.steps=4"))
    shown = {name for _, expr in expressions() for name in re.findall(r"\bray_vllm_\w+", expr)}
    assert shown - seen == {"ray_vllm_num_preemptions_total"}, "it is there from the first preemption on"
    assert head.ended(job) == ("SUCCEEDED", 0), head.logs(job)
    steps = [json.loads(text)["step"] for text in (root / "jobs" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4] and json.loads((root / "jobs" / "summary.json").read_text())["exit"] == 0


def exported_during(head: Head, wait: Callable[[], str]) -> tuple[str, set[str]]:
    """What is waited for, and the names of the metrics that Ray exported meanwhile."""
    seen: set[str] = set()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(wait)
        while not ended.done():
            seen |= set(re.findall(r"^ray_\w+", head.scrape(), re.M))
            time.sleep(0.5)
    return ended.result(), seen


class Jobs:
    """Jobs of one run, over simulated members."""

    def __init__(self, head: Head, recipe: dict[str, Any], folder: Path) -> None:
        self._head = head
        self._file = folder / "recipe.yaml"
        self._file.write_text(yaml.safe_dump(recipe))
        self.directory = folder / "jobs"

    def submit(self, seconds: float, command: tuple[str, ...] = (), overrides: tuple[str, ...] = ()) -> str:
        """`seconds` is how long a rollout member sleeps, a token."""
        what = command or ("run", str(self._file), *overrides)
        return self._head.submit("python", "-m", "tests.cli.simulated", str(seconds), *what)

    def until(self, job: str, condition: Callable[[], bool]) -> None:
        """Wait while the job runs."""
        wait_for(lambda: condition() or self._head.job(job)["status"] in ENDED, job)
        assert condition(), self._head.logs(job)

    def refused(self, seconds: float, overrides: tuple[str, ...] = ()) -> str:
        """What a job says that ends with 2."""
        job = self.submit(seconds, overrides=overrides)
        assert self._head.ended(job) == ("FAILED", 2), self._head.logs(job)
        return self._head.logs(job)

    def command(self, name: str, *arguments: str) -> str:
        """A command of a person beside the cluster."""
        command = [sys.executable, "-m", "orchestrator.cli", name, str(self.directory), *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self._head.environment, capture_output=True, text=True, check=False, timeout=90
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def lines(self) -> list[dict[str, Any]]:
        file = self.directory / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def steps(self) -> int:
        return max((line["step"] for line in self.lines()), default=0)

    def files(self) -> dict[str, tuple[int, int, str]]:
        """Every file of the run's directory but the lock: when it was written, its inode, and its content's hash."""
        files = [file for file in self.directory.rglob("*") if file.is_file() and file.name != "lock"]
        return {str(f): (f.stat().st_mtime_ns, f.stat().st_ino, sha256(f.read_bytes()).hexdigest()) for f in files}

    def summary(self) -> dict[str, Any]:
        file = self.directory / "summary.json"
        return json.loads(file.read_text()) if file.exists() else {}


def _files_with(secret: bytes, folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and secret in file.read_bytes()]


def small_recipe(models: dict[str, Path], prompts: dict[str, Path], root: Path) -> dict[str, Any]:
    small = {"cpus": 0.1}
    return {
        "run": {"name": "jobs", "root": str(root), "steps": STEPS},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models["teacher"])}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 4},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher", "support": "sampled"},
        "learner": {"optimizer": {"lr": 0.01}, "resources": small},
        "rollout": {"max_context_tokens": 64, "resources": small},
        "scorer": {"teacher": {"max_context_tokens": 64, "resources": small}},
        "checkpoint": {"every": 1},
    }
