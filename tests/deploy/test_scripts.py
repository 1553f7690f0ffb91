"""Shell scripts and the Dockerfile: linted, and what they do with a run that lives, has ended or is elsewhere."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, ROOT, documents

BIN = Path(sys.executable).parent
PREEMPT = DEPLOY / "preempt.sh"
SCRIPTS = [PREEMPT, DEPLOY / "slurm" / "run.sbatch", *sorted((ROOT / "scripts").glob("*.sh"))]
LIVING_RUN = """
import fcntl, json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
lock = (folder / "lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(json.dumps({"pid": os.getpid(), "host": os.uname().nodename}))
lock.flush()
def save(*_):
    (folder / "saved").touch()
    sys.exit(3)
signal.signal(signal.SIGTERM, save)
print("runs", flush=True)
time.sleep(60)
"""


def test_shell_scripts_pass_shellcheck() -> None:
    done = subprocess.run([BIN / "shellcheck", *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_scripts_of_the_task_pass_shellcheck(tmp_path: Path) -> None:
    (task,) = documents(DEPLOY / "skypilot" / "task.yaml")
    for part in ("setup", "run"):
        (tmp_path / part).write_text(f"#!/usr/bin/env bash\n{task[part]}")
    done = subprocess.run([BIN / "shellcheck", *tmp_path.iterdir()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_passes_hadolint() -> None:
    command = [BIN / "hadolint", ROOT / "docker" / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_is_made_of_pinned_parts_and_is_not_root() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=debian:\d+\.\d+-slim$", text, re.M)
    assert re.search(r"BASE=nvidia/cuda:13\.0\.\d+-devel-ubuntu24\.04;", text)
    assert "cuda-toolkit==13.0." in (ROOT / "requirements" / "constraints-gpu.txt").read_text()
    users = re.findall(r"^USER (.*)$", text, re.M)
    assert users == ["10001:10001"] and "scripts/setup.sh" in text


def test_the_context_of_the_image_is_named_folder_by_folder() -> None:
    first, *lines = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x and not x.startswith("#")]
    named = [line[1:] for line in lines if line.startswith("!")]
    assert first == "*" and not [path for path in named if not (ROOT / path).exists()]
    packages = re.search(r'include = \["(.*?)"\]\n', (ROOT / "pyproject.toml").read_text())
    assert packages and {name.strip('*"') for name in packages[1].split('", "')} <= set(named)


@pytest.fixture
def living(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", LIVING_RUN, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "runs\n"
    yield process
    process.kill()
    process.wait()


def preempt(run: Path, *more: str) -> int:
    return subprocess.run([PREEMPT, run, *more], timeout=30, check=False).returncode


def test_preempt_lets_the_run_save(living: subprocess.Popen[str], tmp_path: Path) -> None:
    waiter = subprocess.Popen([PREEMPT, tmp_path])
    assert living.wait(timeout=10) == 3  # reaped here, as its parent does
    assert waiter.wait(timeout=10) == 0
    assert (tmp_path / "saved").exists() and not (tmp_path / "stopped").exists()


def test_preempt_gives_up_after_its_time(living: subprocess.Popen[str], tmp_path: Path) -> None:
    living.send_signal(19)  # SIGSTOP: it cannot save
    assert preempt(tmp_path, "1") == 1
    living.send_signal(18)


def test_preempt_leaves_other_machines_and_ended_runs_alone(living: subprocess.Popen[str], tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    ended.mkdir()
    (ended / "lock").write_text(json.dumps({"pid": living.pid, "host": os.uname().nodename}))  # nobody holds it
    (tmp_path / "lock").write_text(json.dumps({"pid": living.pid, "host": "another"}))  # held
    assert [preempt(run) for run in (tmp_path, ended, tmp_path / "none")] == [0, 0, 0]
    assert living.poll() is None and not (tmp_path / "saved").exists()


SRUN = """#!/usr/bin/env bash
while [[ $1 != -- ]]; do shift; done
shift
"$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >requeued
"""
LOGRATIO = """#!/usr/bin/env bash
echo "$@" >calls
[[ $(stat -c %a "$RAY_AUTH_TOKEN_PATH") == 600 && $RAY_AUTH_MODE == token && $RAY_ADDRESS == *:6407 ]] || exit 70
mkdir -p runs/opd
case $ENDS in
    none) kill -9 $PPID $$ ;;
    stopped) touch runs/opd/stopped; exit 3 ;;
    lives) exec python -c "$LIVING_RUN" runs/opd ;;
    *) exit "$ENDS" ;;
esac
"""


def batch(folder: Path, ends: str, restarts: int = 0) -> subprocess.Popen[str]:
    """run.sbatch under a fake Slurm: `srun` runs the command of the head, `scontrol` notes what it is asked."""
    tools = folder / "tools"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "logratio": LOGRATIO}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    (folder / "deploy").symlink_to(DEPLOY)
    slurm = {"SLURM_JOB_ID": "3007", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8"}
    slurm |= {"SLURM_SUBMIT_DIR": str(folder), "SLURM_RESTART_COUNT": str(restarts)}
    fake = {"ENDS": ends, "LIVING_RUN": LIVING_RUN, "PATH": f"{tools}:{BIN}:{os.environ['PATH']}"}
    command = ["bash", DEPLOY / "slurm" / "run.sbatch", "my.yaml", "opd", "run.steps=5"]
    return subprocess.Popen(command, env=slurm | fake, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(
    ("ends", "restarts", "code", "requeued"),
    [
        ("0", 0, 0, False),
        ("1", 0, 1, True),
        ("1", 3, 1, False),  # the last retry
        ("2", 0, 2, False),
        ("3", 5, 3, True),  # without the marker: a preemption, which does not count
        ("stopped", 0, 3, False),
        ("none", 0, 1, True),  # Ray did not start: no code was written
    ],
)
def test_slurm_requeues_what_can_go_on(tmp_path: Path, ends: str, restarts: int, code: int, requeued: bool) -> None:
    job = batch(tmp_path, ends, restarts)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == code, said
    assert (tmp_path / "calls").read_text() == "run my.yaml run.name=opd run.steps=5\n"
    assert (tmp_path / "requeued").exists() == requeued
    assert not list((tmp_path / "runs").glob(".slurm-*"))  # no token is left


def test_slurm_warns_the_shell_alone_and_in_time() -> None:
    text = (DEPLOY / "slurm" / "run.sbatch").read_text()
    warning, saving = re.search(r"^#SBATCH --signal=B:TERM@(\d+)$", text, re.M), re.search(r"save_seconds=(\d+)", text)
    assert warning and saving and int(warning[1]) > int(saving[1])


def test_slurm_lets_a_preempted_run_save_and_requeues_it(tmp_path: Path) -> None:
    job = batch(tmp_path, "lives")
    assert job.stdout and "runs\n" in iter(job.stdout.readline, "")
    job.terminate()  # as --signal=B:TERM does: the shell alone
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 3 and "goes on" in said
    assert (tmp_path / "runs" / "opd" / "saved").exists() and (tmp_path / "requeued").read_text() == "requeue 3007\n"
