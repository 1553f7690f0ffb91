"""`logratio run` over members that sleep, without Ray, which takes a step only once a file allows it.

All that is written to the run directory is written by the product: samples by the learner, metrics by the run, the
status by the driver, once a second instead of every five. `python -m tests.unit.surface.held FOLDER STEPS` runs in
FOLDER/sim, and FOLDER/allowed holds the last step that may be sampled.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.simulated.known import Speeds
from actors.simulated.rollout import SimulatedRollout
from actors.wire.records import Request, Sample
from configs.load import dump_recipe
from configs.schema import Recipe, Sampling
from orchestrator import cli
from orchestrator.evaluation.heldout import HELDOUT_INDEX
from orchestrator.pools.transport import GangSpec
from orchestrator.preflight import files
from orchestrator.scaling.elastic import Elastic
from orchestrator.surface import checked, driver
from tests.unit.simulation import GROUPS, recipe, simulated
from tests.unit.surface.staged import read_inputs, without_ray


class HeldRollout(SimulatedRollout):
    """Writes what is trained in a step once that step is allowed; held-out prompts at once."""

    def __init__(self, allowed: Path) -> None:
        super().__init__(Speeds(rollout=0.01))
        self._allowed = allowed

    async def write(self, request: Request, sampling: Sampling, end_token_ids: Sequence[int]) -> AsyncIterator[Sample]:
        group = int(request.group)
        while group < HELDOUT_INDEX and group // GROUPS >= int(self._allowed.read_text()):
            await asyncio.sleep(0.05)
        async for row in super().write(request, sampling, end_token_ids):
            yield row


@contextlib.asynccontextmanager
async def report(run: Any, display: Any, reporting: Any) -> AsyncIterator[None]:
    """The driver's own reports. There is no actor that `logratio status` would ask for one."""

    async def forget(status: Any) -> None: ...

    nobody, elastic = SimpleNamespace(report=SimpleNamespace(remote=forget)), Elastic(run, display.notice)
    reports = asyncio.create_task(driver._report(run, elastic, nobody, display, reporting))
    yield
    reports.cancel()
    await asyncio.gather(reports, return_exceptions=True)
    await elastic.close()


if __name__ == "__main__":
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    (folder / "recipe.yaml").write_text(dump_recipe(recipe(folder, run={"steps": steps}, record={"every": 1})))

    def rollout(settings: Recipe) -> GangSpec:
        return GangSpec("rollout", HeldRollout, ((folder / "allowed",),), settings.rollout.resources)

    without_ray()
    checked.environment = lambda *arguments: None  # type: ignore[assignment]
    files.read_inputs = read_inputs  # type: ignore[assignment]
    driver.serve_commands, driver.TICKS = report, 1
    sys.argv[1:] = ["run", str(folder / "recipe.yaml")]
    cli.main(replace(simulated(Speeds()), rollout=rollout))
