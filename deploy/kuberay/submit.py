"""Submit a run as a Ray job, follow its log, and exit with the run's own exit code.

    python submit.py RUN_DIRECTORY -- logratio run RECIPE [key=value ...]

`ray job submit` exits with 1 for every failed job and with 0 for a stopped one; a Kubernetes Job whose podFailurePolicy
reads exit codes needs the run's. Exit codes: 0 done; 1 failed, or ended by a preemption: try again; 2 refused; 3
stopped by a person. A run that ends with 3 without the marker `stopped` in its directory was preempted.

If this process is killed the job runs on; the next one finds it by its metadata and follows it.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

PATIENCE_SECONDS = 300.0  # how long the head may be unreachable
PAUSE_SECONDS = 2.0
FAILED, STOPPED = 1, 3
Result = TypeVar("Result")


def main(arguments: list[str]) -> int:
    if len(arguments) < 3 or arguments[1] != "--":
        print("usage: submit.py RUN_DIRECTORY -- COMMAND ...", file=sys.stderr)
        return 2
    from ray.job_submission import JobSubmissionClient

    directory, command = Path(arguments[0]), shlex.join(arguments[2:])
    client = patiently(JobSubmissionClient)  # RAY_API_SERVER_ADDRESS and the token are in the environment
    job = patiently(lambda: living_job(client, directory.name)) or submit(client, directory.name, command)
    return exit_code(follow(client, job), (directory / "stopped").exists())


def submit(client: Any, run: str, command: str) -> str:
    """Submit the job once: its id is chosen here, so that a lost answer does not start it twice."""
    job = f"{run}-{uuid.uuid4().hex[:8]}"

    def once() -> str:
        known = [details.submission_id for details in client.list_jobs()]
        return job if job in known else client.submit_job(entrypoint=command, submission_id=job, metadata={"run": run})

    return patiently(once)


def living_job(client: Any, run: str) -> str | None:
    """The job that runs `run` now, if an earlier submitter started one."""
    for details in client.list_jobs():
        if (details.metadata or {}).get("run") == run and not details.status.is_terminal():
            return details.submission_id
    return None


def follow(client: Any, job: str) -> Any:
    """Print the job's log until it ends; returns its details."""
    while True:
        try:
            asyncio.run(_print_log(client, job))
        except Exception as error:  # the connection ended; the job may not have
            print(f"submit: the log of {job} broke off: {error}", file=sys.stderr, flush=True)
        details = patiently(lambda: client.get_job_info(job))
        if details.status.is_terminal():
            return details
        time.sleep(PAUSE_SECONDS)


async def _print_log(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def exit_code(details: Any, stopped_by_a_person: bool) -> int:
    """The run's exit code; FAILED, which is tried again, where only a preemption or a killed job ended it."""
    if details.status == "SUCCEEDED":
        return 0
    code = details.driver_exit_code
    if code is None or code < 0:  # `ray job stop`, or a signal
        code = STOPPED if stopped_by_a_person else FAILED
    if code == STOPPED and not stopped_by_a_person:
        code = FAILED
    print(f"submit: {details.submission_id} ended with {details.status}, exit code {code}", file=sys.stderr)
    return code


def patiently(ask: Callable[[], Result]) -> Result:
    """Ask until the head answers, PATIENCE_SECONDS at most."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except (ConnectionError, OSError, RuntimeError) as error:
            if time.monotonic() > end:
                raise SystemExit(f"submit: no answer from the cluster: {error}") from None
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
