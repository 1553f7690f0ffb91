"""A real actor that raises what its device or a connection raises, over Ray: it lives, and is replaced all the same."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.scoring.scorer import Scorer
from actors.simulated.known import Speeds
from actors.wire.records import ScoreRequest
from orchestrator.pools.layout import REAL
from orchestrator.pools.pools import Pools
from orchestrator.pools.sick import OUT_OF_MEMORY
from orchestrator.pools.transport import GangSpec
from orchestrator.surface.outcome import first_of
from tests.engines.ranks import Ranks, Strikes, fault
from tests.engines.shared import SMALL_SCORER
from tests.processes import alive
from tests.unit.simulation import simulated

SHORT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:2010, unhandled system error, NCCL version 2.27.5"
STEPS = 6


class Sick(Scorer):
    """Raises the words of a file in the folder `orders` in the place of a score; each file once. Its process id stands
    in the folder `pids`."""

    def __init__(self, folder: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._orders = Path(folder) / "orders"
        (Path(folder) / "pids" / str(os.getpid())).touch()

    async def score(self, payload: pa.RecordBatch, request: ScoreRequest, *earlier: pa.RecordBatch) -> Any:
        for order in sorted(self._orders.iterdir()):
            with suppress(FileNotFoundError):  # another scorer was faster
                words = order.read_text()
                order.unlink()
                raise fault(words)
        return await super().score(payload, request, *earlier)


class Folder:
    """What scorers are to raise, and which there were."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("orders", "pids"):
            (root / name).mkdir()

    def order(self, words: Sequence[str]) -> None:
        for index, text in enumerate(words):
            (self.root / "orders" / f"{index:03d}").write_text(text)

    def left(self) -> int:
        return len(list((self.root / "orders").iterdir()))

    def pids(self) -> set[int]:
        return {int(file.name) for file in (self.root / "pids").iterdir()}


CHANGES: dict[str, Any] = {
    "run": {"steps": STEPS},
    "objective": {"prefix": "student", "target": "teacher", "support": "sampled", "reverse_weight": 1.0},
    "learner": {"ranks": 1, "zero_stage": 0},
    "scorer": {"teacher": SMALL_SCORER},
}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def pools(ranks: Ranks, folder: Folder) -> Iterator[Pools]:
    """Simulated members around scorers that are real, and sick when told."""

    def sick(*arguments: Any) -> GangSpec:
        given = REAL.scorer(*arguments)
        return replace(given, cls=Sick, arguments=tuple((str(folder.root), *a) for a in given.arguments))

    recipe = ranks.recipe(models=_teacher(ranks), **CHANGES)
    made = ranks.pools(recipe, scorer=sick, learner=simulated(Speeds()).learner)
    yield made

    async def stop() -> None:
        await asyncio.gather(*(pool.members.stop() for pool in made.all().values()))

    ranks.runner.run(stop())


def _teacher(ranks: Ranks) -> dict[str, Any]:
    return {"teacher": {"path": str(ranks.models["teacher"])}}


@pytest.mark.system
def test_a_scorer_that_raises_a_fault_is_replaced_and_the_third_shortage_at_one_size_ends_the_run(
    ranks: Ranks, pools: Pools, folder: Folder
) -> None:
    recipe, watcher = ranks.recipe(models=_teacher(ranks), **CHANGES), Strikes()
    folder.order([SHORT, NCCL])
    done = ranks.run(recipe, watcher, pools)
    assert done.code == 0 and not folder.left()
    assert done.summary["restarts"] == {"scorer.teacher": 2} and not done.summary["skipped"]
    uids = [row["uid"] for step in range(1, STEPS + 1) for row in done.samples(f"step_{step:06d}")]
    assert sorted(uids) == [f"{group:08d}.000" for group in range(4 * STEPS)], "each sample once"
    gone = [text for text in watcher.notices if text.startswith("scorer.teacher-")]
    assert len(gone) == 2 and f"OutOfMemoryError: {SHORT}" in gone[0] and f"RuntimeError: {NCCL}" in gone[1]
    serving, seen = pools.scorers["teacher"].members.serving(), folder.pids()
    assert len(serving) == 1 and len(seen) == 3 and len(alive(seen)) == 1, "a sick member does not live on"

    folder.order([SHORT] * 9)
    with pytest.raises(BaseException) as failure:
        ranks.run(ranks.recipe(models=_teacher(ranks), **CHANGES), Strikes(), pools)
    assert str(first_of(failure.value)).splitlines() == [
        f"scorer.teacher: out of memory {OUT_OF_MEMORY} times in score on work of one size; lower "
        "scorer.teacher.tokens_per_batch, or scorer.teacher.gpu_memory_fraction under vLLM "
        f"(OutOfMemoryError: {SHORT})"
    ]
