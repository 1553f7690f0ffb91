"""deploy/kuberay/submit.py against a real job server: exit codes, and a second submitter that follows the same job."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.head import ROOT, Head, started_head, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture
def head() -> Iterator[Head]:
    with started_head() as found:
        wait_for(lambda: found.ended(found.submit("true")) == ("SUCCEEDED", 0), "the job server")
        yield found


def start(head: Head, run: Path, *command: str) -> subprocess.Popen[str]:
    script = [sys.executable, str(ROOT / "deploy" / "kuberay" / "submit.py"), str(run), "--", *command]
    environment = head.environment | {"RAY_API_SERVER_ADDRESS": head.address}
    return subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_submitter_ends_as_its_run(head: Head, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped-run"
    stopped.mkdir()
    (stopped / "stopped").touch()
    for run, code, expected in (
        (tmp_path / "a", 0, 0),
        (tmp_path / "b", 2, 2),
        (tmp_path / "c", 3, 1),
        (stopped, 3, 3),
    ):
        said, errors = (submitter := start(head, run, "sh", "-c", f"echo hello; exit {code}")).communicate(timeout=120)
        assert submitter.returncode == expected and "hello" in said, errors


def test_a_submitter_that_dies_leaves_its_job_to_the_next(head: Head, tmp_path: Path) -> None:
    command = ("sh", "-c", f"touch {tmp_path}/begun; until [ -e {tmp_path}/go ]; do sleep 0.2; done; exit 2")
    first = start(head, tmp_path, *command)
    wait_for((tmp_path / "begun").exists, "the job to begin")
    first.kill()
    first.communicate()
    (tmp_path / "begun").unlink()
    second = start(head, tmp_path, *command)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=5)
    (tmp_path / "go").touch()
    assert second.wait(timeout=60) == 2 and not (tmp_path / "begun").exists()
    jobs = json.loads(head._call("/api/jobs/"))
    assert sum((job["metadata"] or {}).get("run") == tmp_path.name for job in jobs) == 1
