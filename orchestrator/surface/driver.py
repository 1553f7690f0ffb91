"""The driver's side of the control actor: report the run's status and execute commands."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator
from typing import Any

from actors.control import Control, control_name
from configs.load import RecipeError
from orchestrator.run import Run
from orchestrator.scaling.elastic import Elastic
from orchestrator.surface import submission
from orchestrator.surface.display import Display
from orchestrator.surface.reporting import Reporting
from orchestrator.surface.status import status_of

TICK_SECONDS = 1.0  # between two readings of how busy the roles are
TICKS = 5  # from one status to the next: drawing it takes milliseconds where there are hundreds of members
OBJECTS = 20_000  # new objects between two collections of the youngest generation


def collect_seldom() -> None:
    """Collect cyclic garbage less often, and not among objects that exist now. A driver holds about ten objects a
    response in flight, without cycles. At 60,000 responses the default thresholds scan them all every second, in
    0.4 s."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # leak checks at exit would report frozen objects
    gc.set_threshold(OBJECTS, 10, 10)


@contextlib.asynccontextmanager
async def serve_commands(run: Run, display: Display, reporting: Reporting) -> AsyncIterator[None]:
    """Inside of it, `logratio stop | status | scale | swap` reach the run, and its roles may autoscale.

    Raises RecipeError when the cluster already runs one of this name. The actor that they reach starts beside the
    roles, and is not waited for. It is on the driver's node, so that no other node takes it along.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": control_name(run.recipe.run.name), "num_cpus": 0, "scheduling_strategy": here}
    control: Any
    try:
        control = ray.remote(Control).options(**options).remote()
    except ValueError:
        raise RecipeError(f"run.name: {run.recipe.run.name!r} is alive on this cluster; choose another") from None
    elastic = Elastic(run, display.notice)
    tasks = [
        asyncio.create_task(obey(run, elastic, control)),
        asyncio.create_task(_report(run, elastic, control, display, reporting)),
    ]
    for task in tasks:
        task.add_done_callback(lambda done: _say_fault(done, display))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await elastic.close()
        ray.kill(control)


async def obey(run: Run, elastic: Elastic, control: Any) -> None:
    """Execute commands in order. None waits for the effect of an earlier one."""
    while True:
        command, arguments = await control.next_command.remote()
        if command == "stop":
            try:
                await asyncio.to_thread(submission.mark_stopped, run.directory)
            except OSError as error:
                run.observer.notice(f"stop: {submission.unmarked(error)}")
            run.stop()
        elif command == "scale":
            elastic.scale(arguments)
        elif command == "swap":
            try:
                run.swaps.ask(arguments)
                await run.swaps.write()
            except (RecipeError, OSError) as error:  # the command checked, but the run has moved on
                run.observer.notice(f"swap: {error}")


async def _report(run: Run, elastic: Elastic, control: Any, display: Display, reporting: Reporting) -> None:
    for tick in itertools.count():
        elastic.tick()
        if tick % TICKS == 0:
            status = status_of(run, elastic, display.current_phase)
            await control.report.remote(status)
            await reporting.status(status)
        await asyncio.sleep(TICK_SECONDS)


def _say_fault(task: asyncio.Task[None], display: Display) -> None:
    """Notice that commands or status failed; the run goes on."""
    if not task.cancelled() and (error := task.exception()):
        display.notice(f"commands and status no longer reach this run: {error or type(error).__name__}")
