"""A slow disk, and a learner that dies in a save: its rebuild waits for the disk."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import checkpoint
from orchestrator.between_steps import saving
from orchestrator.run import DONE
from orchestrator.uninterrupted import uninterrupted
from tests.unit.simulation import Simulation, learned, recipe
from tests.unit.weights.one_gpu import Gpu, gpu, simulated
from tests.unit.weights.test_turns import kill, nothing

__all__ = ["gpu"]


def test_a_learner_that_dies_in_a_save_is_rebuilt_when_the_disk_is_done(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebuild first looks for the newest checkpoint. By then the attempt before has removed what it wrote."""
    simulation = simulated(tmp_path / "dies", checkpoint={"every": 1})
    removing, found_removing = [0], list[int]()

    def remove(*arguments: Any, work: Callable[..., Any] = shutil.rmtree, **named: Any) -> Any:
        removing[0] += 1
        time.sleep(0.3)
        try:
            return work(*arguments, **named)
        finally:
            removing[0] -= 1

    def latest(run: Path, look: Callable[[Path], Any] = checkpoint.latest) -> Any:
        found_removing.append(removing[0])
        return look(run)

    def third_save() -> None:
        monkeypatch.setattr(saving.shutil, "rmtree", remove)
        kill(simulation, "learner")()

    monkeypatch.setattr(checkpoint, "latest", latest)
    gpu.befalls["save learner"] = [nothing] * 2 + [third_save]
    assert simulation.go() == DONE
    assert found_removing == [0, 0] and not gpu.faults
    monkeypatch.undo()
    assert Simulation(recipe(tmp_path / "apart")).go() == DONE
    assert learned(tmp_path / "dies") == learned(tmp_path / "apart")


def test_a_cancelled_caller_waits_for_its_thread_however_often_it_is_cancelled() -> None:
    async def story() -> None:
        may_end, ended = threading.Event(), threading.Event()

        def work() -> None:
            may_end.wait(5)
            ended.set()

        caller = asyncio.ensure_future(uninterrupted(work))
        for _ in range(3):
            await asyncio.sleep(0.01)
            caller.cancel()
        await asyncio.sleep(0.01)
        assert not caller.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended.is_set()

    asyncio.run(story())


def test_what_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise OSError("no space left on the disk")

    with pytest.raises(OSError, match="no space"):
        asyncio.run(uninterrupted(work))
