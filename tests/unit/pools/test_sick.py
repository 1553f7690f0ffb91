"""Errors of a device, memory or connection are told from errors of the program, and handled."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError

from actors.simulated.learner import SimulatedLearner
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from orchestrator.pools.sick import Shortages, fault_of
from orchestrator.pools.transport import MemberDied, MemberSick, ValueLost, _translated
from orchestrator.run import DONE
from orchestrator.surface.outcome import first_of
from orchestrator.weights.rank_answers import GRACE, SHORT_GRACE, together
from tests.unit.own_time import in_own_time
from tests.unit.simulation import Simulation, assert_each_once, recipe

OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB")
GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2345")


class EngineDeadError(Exception):
    """Named as in vLLM."""


class EngineGenerateError(Exception): ...


class Unpicklable(torch.OutOfMemoryError):
    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


def caused(cause: Exception) -> Exception:
    error = EngineGenerateError()
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OOM, "memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 5"), "memory"),
        (MemoryError(), "memory"),
        (caused(OOM), "memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
        (RuntimeError("CUDA error: device-side assert triggered"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), "device"),
        (torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:2010, remote exited"), "device"),
        (RuntimeError("NCCL communicator was aborted on rank 1."), "device"),
        (GLOO, "device"),
        (RuntimeError("Connection reset by peer"), "device"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "device"),
        (EngineDeadError("EngineCore encountered an issue."), "device"),
        (ValueError("CUDA out of memory"), None),
        (RuntimeError("shape '[3]' is invalid for input of size 4"), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (KeyError("NCCL"), None),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), None),
        (ValueError("weights are out of memory of this world"), None),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_errors_of_a_machine_are_told_from_errors_of_a_program(error: Exception, fault: str | None) -> None:
    assert fault_of(error) == fault


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize(
    ("cause", "traceback", "fault"),
    [
        (OOM, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory.", "memory"),
        (Unpicklable("CUDA out of memory"), "Traceback\ntests.Unpicklable: no\ntorch.OutOfMemoryError: CUDA", "memory"),
        (EngineGenerateError(), "torch.OutOfMemoryError: x\n\nThe above exception was the direct cause of", "memory"),
        (ValueError("3"), "torch.OutOfMemoryError: x\n\nDuring handling of the above exception, another exception "
                          "occurred:\n\nValueError: 3", None),
        (EngineDeadError("gone"), "vllm.v1.engine.exceptions.EngineDeadError: gone", "device"),
    ],
)  # fmt: skip
def test_the_fault_is_found_inside_rays_wrapper(
    cause: Exception, traceback: str, fault: str | None, dual: bool
) -> None:
    wrapped: Any = RayTaskError("step", traceback, cause)
    error = _translated(wrapped.as_instanceof_cause() if dual else wrapped)
    assert (error.fault if isinstance(error, MemberSick) else None) == fault
    assert fault or type(error) is type(cause)


def failing(monkeypatch: pytest.MonkeyPatch, cls: type, method: str, error: Exception, times: int) -> list[int]:
    """The first calls of a method raise; of `write` the first call of each of the first members."""
    whole: Callable[..., Any] = getattr(cls, method)
    left, writers = [times], list[Any]()

    def struck() -> bool:
        left[0] -= 1
        return left[0] >= 0

    if method == "write":

        async def write(self: Any, *arguments: Any) -> AsyncIterator[Any]:
            if self not in writers:
                writers.append(self)
                if struck():
                    raise error
            async for row in whole(self, *arguments):
                yield row

        monkeypatch.setattr(cls, method, write)
    else:

        def call(self: Any, *arguments: Any) -> Any:
            if struck():
                raise error
            return whole(self, *arguments)

        monkeypatch.setattr(cls, method, call)
    return left


ROLES: list[tuple[str, type, str]] = [
    ("rollout", SimulatedRollout, "write"),
    ("scorer.teacher", SimulatedScorer, "score"),
    ("reward", SimulatedReward, "reward"),
    ("learner", SimulatedLearner, "step"),
    ("learner", SimulatedLearner, "save"),
    ("learner", SimulatedLearner, "fetch"),
]


@pytest.mark.parametrize("error", [OOM, GLOO, RuntimeError("CUDA error: unknown")], ids=["oom", "gloo", "cuda"])
@pytest.mark.parametrize(("role", "cls", "method"), ROLES, ids=[f"{role}-{method}" for role, _, method in ROLES])
def test_a_sick_member_is_replaced_and_its_work_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, cls: type, method: str, error: Exception
) -> None:
    failing(monkeypatch, cls, method, error, 2)
    simulation = Simulation(recipe(tmp_path))
    assert simulation.go() == DONE
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["learner_rebuilds"] + sum(summary["restarts"].values()) == 2 and summary["skipped"] == {}
    assert role == "learner" or summary["restarts"].keys() == {role}
    assert_each_once(tmp_path)


KEYS = {
    "rollout": "rollout.max_concurrent",
    "scorer.teacher": "scorer.teacher.tokens_per_batch",
    "reward": "stream.coalesce_samples",
    "learner": "batch.tokens_per_microbatch",
}


@pytest.mark.parametrize(("role", "cls", "method"), ROLES[:4], ids=[role for role, _, _ in ROLES[:4]])
def test_repeated_out_of_memory_ends_the_run_and_names_the_key_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, cls: type, method: str
) -> None:
    failing(monkeypatch, cls, method, OOM, 10**6)
    with pytest.raises(BaseException) as failure:
        Simulation(recipe(tmp_path)).go()
    line = str(first_of(failure.value)).splitlines()[0]
    assert role in line and KEYS[role] in line and "out of memory" in line


def test_an_error_of_the_program_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, SimulatedScorer, "score", ValueError("CUDA out of memory"), 1)
    with pytest.raises(BaseException) as failure:
        Simulation(recipe(tmp_path)).go()
    assert isinstance(first_of(failure.value), ValueError)


def test_an_answer_clears_the_shortages_of_its_size_and_smaller_ones() -> None:
    short = Shortages()
    assert not short.note("score", 1000) and not short.note("score", 900)
    short.answered("score", 100)
    short.answered("load", 5000)
    assert short.note("score", 1023), "the third of its size"
    short.answered("score", 1024)
    assert not short.note("score", 1000)


# --- ranks that are called together ---


def answer(seconds: float, outcome: Any) -> Any:
    async def work() -> Any:
        await asyncio.sleep(seconds)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return work()


NEVER = 1e6


@pytest.mark.parametrize(
    ("answers", "told", "after"),
    [
        ([(1.0, "a"), (2.0, "b")], None, 2.0),
        ([(1.0, RuntimeError("odd")), (9.0, MemberDied("killed")), (NEVER, "hangs")], MemberDied, 9.0),
        ([(1.0, RuntimeError("odd")), (2.0, RuntimeError("odd"))], RuntimeError, 2.0),
        ([(1.0, RuntimeError("odd")), (NEVER, "hangs")], RuntimeError, 1.0 + GRACE),
        ([(1.0, MemberSick("gloo", "device")), (NEVER, "hangs")], MemberSick, 1.0 + SHORT_GRACE),
        ([(1.0, MemberSick("gloo", "device")), (3.0, MemberDied("killed"))], MemberDied, 3.0),
        ([(1.0, MemberDied("killed")), (NEVER, "hangs")], MemberDied, 1.0),
        ([(1.0, ValueLost("gone")), (2.0, "b")], ValueLost, 2.0),
        ([(1.0, ValueLost("gone")), (2.0, RuntimeError("odd"))], RuntimeError, 2.0),
    ],
)
def test_a_ranks_error_waits_for_the_other_ranks(
    answers: list[tuple[float, Any]], told: type | None, after: float
) -> None:
    async def story() -> tuple[Any, float]:
        try:
            found: Any = await together([answer(*one) for one in answers])
        except Exception as error:
            found = type(error)
        return found, asyncio.get_running_loop().time()

    assert in_own_time(story()) == (told or [value for _, value in answers], pytest.approx(after))
