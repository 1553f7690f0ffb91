"""No blocking call runs on the thread of an event loop: in whole runs, and in the members that serve on one."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from actors.member import Member
from actors.models import weights
from actors.models.causal_lm import load_model
from actors.rollout.rollout import Rollout
from actors.rollout.teacher_rollout import TeacherRollout
from actors.scoring.scorer import Scorer
from actors.wire.records import Request, Sample, ScoreRequest, pack_samples
from configs.load import load_recipe
from configs.roles.rollout import Rollout as RolloutConfig
from configs.roles.scorer import Scorer as ScorerConfig
from configs.schema import Sampling
from orchestrator.pools.member import quote_log
from orchestrator.run import DONE, STOPPED, Run
from tests.off_the_loop import OURS, Guard, OnTheLoop, off_the_loop
from tests.unit.simulation import Simulation, crash_at, recipe, stop_at

HASHED, CUT = 2**17, 16 * 2**10  # bytes


@pytest.fixture
def nothing_blocks() -> Iterator[None]:
    with off_the_loop():
        yield


class Blocking(Member):
    """A member that makes each blocking call on its loop."""

    def __init__(self, file: Path) -> None:
        self.file = file

    async def do(self, deed: Callable[[Path], Any]) -> Any:
        return deed(self.file)


DEEDS: dict[str, Callable[[Path], Any]] = {
    "opening a file": lambda file: builtins.open(file).close(),
    "reading a file": lambda file: file.read_text(),
    "writing a file": lambda file: file.write_bytes(b""),
    "opening by number": lambda file: os.close(os.open(file, os.O_RDONLY)),
    "reading by number": lambda file: os.read(0, 0),
    "writing by number": lambda file: os.write(1, b""),
    "fsync": lambda file: os.fsync(0),
    "copying a file": lambda file: shutil.copyfile(file, f"{file}.copy"),
    "removing a tree": lambda file: shutil.rmtree(file.parent / "none", ignore_errors=True),
    "an arrow file": lambda file: pa.OSFile(str(file), "wb").close(),
    "saving tensors": lambda file: torch.save({}, file),
    "ray.get": lambda file: ray.get([]),
    "ray.wait": lambda file: ray.wait([]),
    "hashing": lambda file: hashlib.sha256(bytes(HASHED)),
    "a fingerprint": lambda file: weights.fingerprint(np.zeros(1, np.uint8)),
    "copying a tensor": lambda file: torch.zeros(1).clone(),
    "writing into a tensor": lambda file: torch.zeros(1).copy_(torch.ones(1)),
    "moving a tensor": lambda file: torch.zeros(1).cpu(),
    "joining arrays": lambda file: np.concatenate([np.zeros(HASHED, np.uint8)] * 2),
    "sleeping": lambda file: time.sleep(0),
}


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_the_guard_refuses_each_blocking_call_on_a_loops_thread_only(
    deed: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tests.off_the_loop.OURS", (*OURS, __file__))  # as if this were the program
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setattr(ray, "get", lambda refs: None)
    monkeypatch.setattr(ray, "wait", lambda refs: None)
    guard, member = Guard(monkeypatch), Blocking(tmp_path / "file")
    guard.everything()
    deed(member.file)  # no loop here
    asyncio.run(asyncio.to_thread(deed, member.file))  # type: ignore[arg-type]
    with pytest.raises(OnTheLoop):
        asyncio.run(member.do(deed))
    assert len(guard.refused) == 1


def logged(self: Member, path: str) -> int:
    """Replaces `attach_log`, which would redirect the test's own output."""
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("last words\n")
    return 0


def test_a_run_with_checkpoints_evaluations_and_a_swap_blocks_nothing(tmp_path: Path, nothing_blocks: None) -> None:
    def swap(run: Run, line: Any) -> None:
        if line["step"] == 2:
            run.swaps.ask({"teacher": "/b"})

    settings = recipe(tmp_path, checkpoint={"every": 2}, evaluate={"every": 3}, record={"every": 1})
    simulation = Simulation(settings, on_step=swap)
    assert simulation.go() == DONE
    assert load_recipe(simulation.directory / "recipe.yaml").models["teacher"].swaps == {4: "/b"}


@pytest.mark.parametrize("end", [stop_at(3), crash_at(3)], ids=["stopped", "crashed"])
def test_a_resume_blocks_nothing(tmp_path: Path, nothing_blocks: None, end: Any) -> None:
    settings = recipe(tmp_path, checkpoint={"every": 2}, max_staleness=1)
    try:
        assert Simulation(settings, on_step=end).go() == STOPPED
    except* RuntimeError as group:
        assert group.subgroup(lambda error: "pulled the plug" in str(error))
    assert Simulation(settings).go() == DONE


@pytest.mark.parametrize("role", ["rollout", "scorer.teacher", "learner"])
def test_a_death_and_its_repair_block_nothing(
    tmp_path: Path, nothing_blocks: None, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setattr(Member, "attach_log", logged)

    killed: list[str] = []

    def kill(run: Run, line: Any) -> None:
        pool = run.pools.all()[role]
        if line["step"] == 3 and not killed:
            killed.append(role)
            asyncio.get_running_loop().create_task(pool.transport.kill(pool.members[0].actors))

    simulation = Simulation(recipe(tmp_path, checkpoint={"every": 1}), on_step=kill)
    for pool in simulation.pools.all().values():
        pool.startup.logs = tmp_path / "logs"
    assert simulation.go() == DONE
    died = [notice for notice in simulation.notices if "last words" in notice]
    assert len(died) == 1 and f"{role}-0.log" in died[0]


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "rollout-0.log"
    log.write_bytes(b"\xff" * 4 * CUT + b"\n" + b"".join(b"line %d\n" % i for i in range(40)))
    quoted = quote_log(log).splitlines()[2:]
    assert [line.strip() for line in quoted] == [f"line {i}" for i in range(20, 40)]
    log.write_bytes(b"x" * 8 * CUT)  # one line without an end
    assert len(quote_log(log)) < 2 * CUT
    assert quote_log(tmp_path / "none.log") == ""


def published(model: Path, dtype: str = "float32") -> tuple[list[Any], list[Any]]:
    """A model's weights as a version: headers and buckets."""
    named = load_model(model, dtype).named_parameters()
    pairs = list(weights.buckets(((name, tensor.detach()) for name, tensor in named), dtype))
    return [header for _, header in pairs], [bucket for bucket, _ in pairs]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_torch_scorer_blocks_nothing(models: dict[str, Path], nothing_blocks: None, dtype: str) -> None:
    headers, buckets = published(models["teacher"], dtype)
    rows = [
        Request(f"{i}.0", f"{i}", 0, 1, [5, 6, 7]).answered([8, 9, 10 + i], [-1.0] * 3, "stop", [0] * 3)
        for i in range(3)
    ]

    async def story() -> None:
        scorer = Scorer(ScorerConfig(dtype=dtype, max_context_tokens=64), str(models["teacher"]), vocabulary=250)
        await scorer.start()
        for request in (ScoreRequest("sampled"), ScoreRequest("topk", topk=3), ScoreRequest("full", reusable=True)):
            _, header = await scorer.score(pack_samples(rows)[0], request)
            assert header.uids == ("0.0", "1.0", "2.0")
        assert await scorer.load(3, headers, *buckets) == 3
        await scorer.sleep()
        await scorer.wake()
        assert (await scorer.projection())[1] == 3
        assert await scorer.swap(4, str(models["poet"])) == 4
        await scorer.drain()
        await scorer.stop()

    asyncio.run(story())


class StubLLM:
    """Accepts the calls of a rollout member that loads a version."""

    def __init__(self) -> None:
        self.versions: list[str] = []

    async def pause_generation(self, **_: Any) -> None: ...

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> None:
        assert method == "load_version"
        assert await asyncio.to_thread(os.path.exists, args[0])

    async def reset_prefix_cache(self, **_: Any) -> bool:
        return True

    async def update_weight_version(self, version: str) -> None:
        self.versions.append(version)

    async def resume_generation(self) -> None: ...


def test_a_rollout_loads_a_version_without_blocking(
    models: dict[str, Path], tmp_path: Path, nothing_blocks: None
) -> None:
    headers, buckets = published(models["student"])
    rollout, llm = Rollout(RolloutConfig(), str(models["student"]), str(tmp_path)), StubLLM()
    rollout._engine, rollout._folder = llm, SimpleNamespace(path=tmp_path)  # type: ignore[assignment]
    assert asyncio.run(rollout.load(7, headers, *buckets)) == 7
    assert llm.versions == ["7"] and not list(tmp_path.iterdir())


def test_a_teachers_response_is_kept_and_read_without_blocking(
    models: dict[str, Path], tmp_path: Path, nothing_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sampled(self: Rollout, request: Request, sampling: Sampling, end: Sequence[int]) -> AsyncIterator[Sample]:
        yield request.answered([5, 2], [-0.5, -0.5], "stop", [0, 0])

    monkeypatch.setattr(Rollout, "_sample", sampled)
    teacher = TeacherRollout(RolloutConfig(), str(models["teacher"]), "/none", str(tmp_path))
    request = Request("a.0", "a", 0, 1, [1, 2])

    async def written() -> list[Sample]:
        return [row async for row in teacher._sample(replace(request), Sampling(max_response_tokens=4), (2,))]

    assert asyncio.run(written()) == asyncio.run(written())
    assert teacher.counts() == {"kept": 1, "sampled": 1}
