"""deploy/kuberay/submit.py: the run's exit code, one job for a run, patience with the cluster."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from tests.deploy.manifests import KUBERAY


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("submit", KUBERAY / "submit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    return module


class Jobs:
    """A job server: a job ends with the given status and code once its log has been read `breaks` + 1 times."""

    def __init__(self, status: JobStatus, code: int | None, breaks: int = 0, refusals: int = 0) -> None:
        self.ending, self.code, self.breaks, self.refusals = status, code, breaks, refusals
        self.jobs: dict[str, dict[str, Any]] = {}

    def submit_job(self, entrypoint: str, submission_id: str, metadata: dict[str, str]) -> str:
        assert submission_id not in self.jobs, "a job server refuses a second job of an id"
        self.jobs[submission_id] = {"entrypoint": entrypoint, "metadata": metadata, "status": JobStatus.RUNNING}
        if self.refusals:  # the answer is lost, the job is not
            self.refusals -= 1
            raise ConnectionError("reset")
        return submission_id

    def list_jobs(self) -> list[JobDetails]:
        return [self.get_job_info(job) for job in self.jobs]

    def get_job_info(self, job: str) -> JobDetails:
        fields = self.jobs[job]
        code = self.code if fields["status"].is_terminal() else None
        return JobDetails(type=JobType.SUBMISSION, submission_id=job, driver_exit_code=code, **fields)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "step 1\n"
        if self.breaks:
            self.breaks -= 1
            raise RuntimeError("WebSocket connection closed unexpectedly")
        self.jobs[job]["status"] = self.ending


@pytest.mark.parametrize(
    ("status", "code", "marker", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, False, 0),
        (JobStatus.FAILED, 1, False, 1),
        (JobStatus.FAILED, 2, False, 2),
        (JobStatus.FAILED, 3, True, 3),
        (JobStatus.FAILED, 3, False, 1),  # preempted
        (JobStatus.FAILED, -9, False, 1),  # killed
        (JobStatus.FAILED, None, False, 1),  # the head was lost
        (JobStatus.STOPPED, None, False, 1),  # `ray job stop`
        (JobStatus.STOPPED, None, True, 3),
    ],
)
def test_the_exit_code_is_the_runs(
    submit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    status: JobStatus,
    code: int | None,
    marker: bool,
    expected: int,
) -> None:
    jobs = Jobs(status, code)
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda: jobs)
    if marker:
        (tmp_path / "stopped").touch()
    assert submit.main([str(tmp_path), "--", "logratio", "run", "a b.yaml"]) == expected
    ((job, fields),) = jobs.jobs.items()
    assert job.startswith(tmp_path.name) and fields["entrypoint"] == "logratio run 'a b.yaml'"


def test_a_log_that_breaks_off_is_taken_up(submit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = Jobs(JobStatus.SUCCEEDED, 0, breaks=2)
    job = submit.submit(jobs, "opd", "logratio run x")
    assert submit.follow(jobs, job).status == JobStatus.SUCCEEDED
    assert capsys.readouterr().out == "step 1\n" * 3


def test_a_lost_answer_submits_no_second_job(submit: ModuleType) -> None:
    jobs = Jobs(JobStatus.SUCCEEDED, 0, refusals=1)
    assert [submit.submit(jobs, "opd", "logratio run x")] == list(jobs.jobs)


def test_a_living_job_of_the_run_is_followed_and_no_other(submit: ModuleType) -> None:
    jobs = Jobs(JobStatus.FAILED, 1)
    ended, other, living = (submit.submit(jobs, run, "logratio run x") for run in ("opd", "sft", "opd"))
    jobs.jobs[ended]["status"] = JobStatus.FAILED
    assert submit.living_job(jobs, "opd") == living
    assert submit.living_job(jobs, "sft") == other
    assert submit.living_job(jobs, "rl") is None


def test_it_gives_up_on_a_cluster_that_never_answers(submit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "PATIENCE_SECONDS", 0.0)

    def ask() -> None:
        raise ConnectionError("refused")

    with pytest.raises(SystemExit, match="no answer from the cluster: refused"):
        submit.patiently(ask)
