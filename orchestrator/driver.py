"""The driver's side of the control actor: report how the run is, and do what commands ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from actors.control import Control, control_name
from configs.load import RecipeError
from orchestrator.display import Display
from orchestrator.run import Run

REPORT_SECONDS = 1.0


@contextlib.asynccontextmanager
async def serve_commands(run: Run, display: Display) -> AsyncIterator[None]:
    """While this is entered, `logratio stop | status | scale` reach the run.

    Raises RecipeError when the cluster already runs one of this name.
    """
    import ray

    control: Any
    try:
        control = ray.remote(Control).options(name=control_name(run.recipe.run.name), num_cpus=0).remote()
        await control.status.remote()
    except ValueError:
        raise RecipeError(f"run.name: {run.recipe.run.name!r} is alive on this cluster; choose another") from None
    tasks = [asyncio.create_task(_obey(run, control, display)), asyncio.create_task(_report(run, control, display))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ray.kill(control)


async def _obey(run: Run, control: Any, display: Display) -> None:
    while True:
        command, arguments = await control.next_command.remote()
        if command == "stop":
            run.stop()
        elif command == "scale":
            pools = run.pools.all()
            sized = (pools[role].resize(size) for role, size in arguments.items())
            for failure in await asyncio.gather(*sized, return_exceptions=True):
                if isinstance(failure, BaseException):  # the run goes on with the members it has
                    display.notice(f"scale: {failure}")


async def _report(run: Run, control: Any, display: Display) -> None:
    while True:
        await control.report.remote(status_of(run, display.current_phase))
        await asyncio.sleep(REPORT_SECONDS)


def status_of(run: Run, phase: str) -> dict[str, Any]:
    """What `logratio status` shows."""
    members = [
        {
            "role": role,
            "name": f"{role}-{member.number}",
            "serving": member.serving,
            "version": member.version if member.version >= 0 else None,
            "load": member.load,
            "restarts": pool.restarts,
        }
        for role, pool in run.pools.all().items()
        for member in pool.members
    ]
    return {
        "step": run.progress.step,
        "steps": run.recipe.run.steps,
        "version": run.progress.version,
        "phase": phase,
        "members": members,
    }
