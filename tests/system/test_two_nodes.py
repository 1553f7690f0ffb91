"""A real run on two machines with addresses of their own. The one with rollout, scorer and a learner rank is lost at
work, and the run ends on a third."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from actors.shared_memory import shared_folder
from tests.listening import listeners, table, unlisted
from tests.processes import alive, title
from tests.system.head import wait_for
from tests.system.machines import GCS, SUBNET, Machine, Network, NoNamespaces, network
from tests.tiny import build_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]
STEPS, GROUPS, EACH = 10, 3, 8
LOST_AFTER = 3  # steps; the newest checkpoint is that of the one before
CPUS = ("--num-cpus", "4")
TRAIN, SAMPLE = ("--labels", "part=train"), ("--labels", "part=sample")
SOON_MISSED = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}  # in 15 s, not in 65 s
ROLES = ("Control", "Learner", "Reward", "Rollout", "Scorer")


@pytest.fixture
def net() -> Iterator[Network]:
    try:
        with network(**SOON_MISSED, RAY_debug_dump_period_milliseconds="500") as found:
            yield found
            left = found.processes()
    except NoNamespaces as reason:
        pytest.skip(str(reason))
    wait_for(lambda: not alive(left), "the machines' processes to end", 30.0)


def test_a_run_goes_on_when_a_machine_is_lost(net: Network, prompts: dict[str, Path], tmp_path: Path) -> None:
    head, lost = net.head(*CPUS, *TRAIN), net.worker(*CPUS, *SAMPLE)
    run = RunOnMachines(net, recipe(prompts, tmp_path), tmp_path)

    run.until(lambda: run.steps() >= LOST_AFTER)
    assert run.places() == {"Control": [1], "Learner": [1, 2], "Reward": [1], "Rollout": [2], "Scorer": [2]}
    for machine in (head, lost):
        found = listeners(machine.processes())
        assert found and not unlisted(found, table("On a cluster"), machine.address)
    run.until(lambda: head.chunks() >= 2)  # scores
    if run.publishes_on(head):  # else rollout and publisher are on one machine
        run.until(lambda: lost.chunks() >= LOST_AFTER)
    came, went = lost.traffic()
    print(
        f"bytes: {came} came, {went} went, {run.score_bytes():.0f} of scores; chunks: {head.chunks()}, {lost.chunks()}"
    )
    assert came > LOST_AFTER * student_of(tmp_path).stat().st_size and went > run.score_bytes() > 0

    run.halt_in_a_step(lost)
    gone = lost.lose()
    net.worker(*CPUS, *SAMPLE)
    assert run.ended() == 0, run.said()
    assert run.where_ray_put_them() == {
        "Control": [1], "Learner": [1, 1, 2, 3], "Reward": [1], "Rollout": [2, 3], "Scorer": [2, 3]
    }  # fmt: skip
    assert "learner died in step" in run.said() and "rollout-0 is gone" in run.said(), "it was lost at work"
    assert [line["step"] for line in run.lines()] == list(range(1, STEPS + 1))
    uids = [f"{group:08d}.{sample:03d}" for group in range(STEPS * GROUPS) for sample in range(EACH)]
    assert sorted(row["uid"] for row in run.trained()) == uids, "each sample once over the surviving lineage"
    summary = run.summary()
    assert summary["restarts"] == {"rollout": 1, "scorer.teacher": 1} and summary["learner_rebuilds"] == 1
    assert summary["skipped"] == {}
    assert "no longer reach" not in run.said(), "commands and status go on"
    assert not alive(gone) and not Path(shared_folder("nodes", str(tmp_path))).exists()


class RunOnMachines:
    """`logratio run` on the first machine of a network."""

    def __init__(self, net: Network, recipe: dict[str, Any], folder: Path) -> None:
        self._net, self._output, self.directory = net, folder / "output", folder / recipe["run"]["name"]
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(folder / "recipe.yaml")]
        self._driver = net.run(net.machines[0], *command, output=self._output)

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait while it lives."""
        wait_for(lambda: condition() or self._driver.poll() is not None, "the run", 180.0)
        assert condition(), self.said()

    def ended(self) -> int:
        return self._driver.wait(timeout=240)

    def said(self) -> str:
        return self._output.read_text()

    def steps(self) -> int:
        return len(self.lines())

    def lines(self) -> list[dict[str, Any]]:
        file = self.directory / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def summary(self) -> dict[str, Any]:
        return json.loads((self.directory / "summary.json").read_text())

    def trained(self) -> list[dict[str, Any]]:
        """What the learner ranks recorded of every step that counts."""
        rows: list[dict[str, Any]] = []
        for file in (self.directory / "samples").glob("step_*.rank*.arrow"):
            with pa.OSFile(str(file)) as source:
                rows += pa.ipc.open_file(source).read_all().to_pylist()
        return rows

    def places(self) -> dict[str, list[int]]:
        """The machines that each role's processes are on, by their numbers, as the kernel has it."""
        found: dict[str, list[int]] = defaultdict(list)
        for number, machine in enumerate(self._net.machines, 1):
            for role in (title(pid).partition("::")[2].strip().split(".")[0] for pid in machine.processes()):
                if role in ROLES:
                    found[role].append(number)
        return dict(found)

    def where_ray_put_them(self) -> dict[str, list[int]]:
        """The machines on which each role's actors are or were, as Ray has it."""
        found: dict[str, list[int]] = defaultdict(list)
        for actor in self._net.actors():
            found[actor["ActorClassName"]].append(int(actor["Address"]["IPAddress"].removeprefix(f"{SUBNET}.")))
        return {role: sorted(machines) for role, machines in found.items()}

    def score_bytes(self) -> float:
        """Of all scores that were made for the steps so far."""
        known = [line for line in self.lines() if line["tokens_scored"]]
        return sum(line["score_bytes_per_token"] * line["tokens_scored"] for line in known)

    def publishes_on(self, machine: Machine) -> bool:
        """Whether the learner's first rank, which publishes versions, is on a machine."""
        log = str(self.directory / "logs" / "learner-0.rank0.log")
        return any(log in _open_files(pid) for pid in machine.processes())

    def halt_in_a_step(self, machine: Machine) -> None:
        """Stop the learner rank of a machine while it works on a step, which it would end before it can be killed."""
        [rank] = [pid for pid in machine.processes() if title(pid).startswith("ray::Learner")]
        deadline = time.monotonic() + 60.0
        while True:
            while not title(rank).startswith("ray::Learner.step"):
                assert time.monotonic() < deadline and self._driver.poll() is None, self.said()
                time.sleep(0.002)
            os.kill(rank, signal.SIGSTOP)
            time.sleep(0.05)
            if title(rank).startswith("ray::Learner.step"):
                return
            os.kill(rank, signal.SIGCONT)


def _open_files(pid: int) -> list[str]:
    with suppress(OSError):  # it has ended
        return [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return []


def student_of(root: Path) -> Path:
    """The file of a student whose versions have tensors that Ray keeps in its object store: above 100 KiB."""
    file = root / "student" / "model.safetensors"
    if not file.exists():
        build_model(file.parent, tied=True, padding=3000)
    return file


def recipe(prompts: dict[str, Path], root: Path) -> dict[str, Any]:
    """Rollout and scorer where samples are made; learner ranks on two machines."""
    teacher = build_model(root / "teacher", seed=1, padding=3000)

    def on(**more: Any) -> dict[str, Any]:
        return {"resources": {"cpus": 0.1, "threads": 1, **more}}

    engine = {"dtype": "float32", "max_context_tokens": 200}
    return {
        "cluster": {"address": GCS},
        "run": {"name": "nodes", "root": str(root), "steps": STEPS},
        "models": {"student": {"path": str(student_of(root).parent)}, "teacher": {"path": str(teacher)}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": GROUPS, "samples_per_prompt": EACH},
        "sampling": {"max_response_tokens": 128},
        "objective": {"target": "teacher", "support": "full"},
        "max_staleness": 1,
        "learner": {
            "ranks": 2,
            "dtype": "float32",
            "zero_stage": 1,
            "optimizer": {"lr": 1e-4},
            **on(placement="strict_spread"),
        },
        "rollout": {**engine, **on(labels={"part": "sample"})},
        "scorer": {"teacher": {**engine, **on(labels={"part": "sample"})}},
        "reward": on(labels={"part": "train"}),
        "checkpoint": {"every": 2},
        "record": {"every": 1},
    }
