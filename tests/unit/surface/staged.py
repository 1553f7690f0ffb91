"""`logratio` on a recipe with stages, with members in the same process instead of Ray.

One process imports everything and forks for each command: a line of stdin is a JSON list of a stage, a step and a
signal, which the command sends itself after that step of that stage, and its arguments. It answers with the exit code.
In place of a step may stand BEFORE or AFTER. A learner's weights are beside what it exports.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.member import Member
from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from configs.schema import Recipe
from orchestrator import cli
from orchestrator.pools import transport
from orchestrator.preflight import capacity, cluster, files
from orchestrator.scaling.elastic import Elastic
from orchestrator.surface import driver
from orchestrator.surface.pipelines import carry_out
from orchestrator.surface.report import page  # noqa: F401
from orchestrator.surface.status import status_of
from orchestrator.surface.submission import mark_stopped
from orchestrator.surface.trackers import prometheus  # noqa: F401
from tests.unit.simulation import HELDOUT, TRAIN, simulated

BEFORE = -1  # as the stage's inputs are read, before any stage begins
AFTER = -2  # once the stage has ended; without a signal `logratio stop` leaves its mark then


class Tokenizer:
    def decode(self, ids: list[int]) -> str:
        return str(ids)


def strike_at(stage: str, step: int, number: int) -> Any:
    @contextlib.asynccontextmanager
    async def serve_commands(run: Any, display: Any, reporting: Any) -> AsyncIterator[None]:
        await reporting.status(status_of(run, Elastic(run, display.notice), display.current_phase))

        async def watch() -> None:
            while run.recipe.run.stage == stage and step >= 0:
                if run.progress.step >= step:
                    os.kill(os.getpid(), number)
                    return
                await asyncio.sleep(0.0)

        watching = asyncio.create_task(watch())
        yield
        watching.cancel()

    return serve_commands


def strike_before(stage: str, number: int) -> None:
    def read(recipe: Recipe) -> files.Inputs:
        if recipe.run.stage == stage:
            os.kill(os.getpid(), number)
        return read_inputs(recipe)

    files.read_inputs = read  # type: ignore[assignment]


def strike_after(stage: str, number: int) -> None:
    carry_out_one = carry_out.carry_out_one

    def carry(recipe: Recipe, directory: Path, *rest: Any) -> int:
        code = carry_out_one(recipe, directory, *rest)
        if recipe.run.stage == stage and number:
            os.kill(os.getpid(), number)
        elif recipe.run.stage == stage:
            mark_stopped(directory)
        return code

    carry_out.carry_out_one = carry  # type: ignore[assignment]


def strike(stage: str, step: int, number: int) -> None:
    driver.serve_commands = strike_at(stage, step, number)
    if step == BEFORE:
        strike_before(stage, number)
    elif step == AFTER:
        strike_after(stage, number)


def read_inputs(recipe: Recipe) -> files.Inputs:
    answered = recipe.objective.prefix == "dataset"
    train = [replace(prompt, response_ids=[10, 11, 1]) for prompt in TRAIN] if answered else TRAIN
    return files.Inputs(train, HELDOUT, Tokenizer(), 1000, (1,), 0, 0)


def export_weights(learner: SimulatedLearner, directory: str) -> None:
    Path(directory).mkdir(parents=True, exist_ok=True)
    (Path(directory) / "weights.json").write_text(json.dumps([float(w) for w in learner._weights]))


def nothing(*arguments: Any) -> contextlib.nullcontext[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Ended:
    code: int
    output: str


class Server:
    """Asks the process that forks for one command after the other."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._output = folder / "output"

    def __call__(self, *arguments: Any, stage: str = "", step: int = 0, number: int = 0) -> Ended:
        assert self._process.stdin and self._process.stdout
        request = [stage, step, int(number), str(self._output), *map(str, arguments)]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(json.loads(self._process.stdout.readline()), self._output.read_text())


@contextlib.contextmanager
def server(folder: Path, module: str = "tests.unit.surface.staged") -> Iterator[Server]:
    """Ends with the context. `folder` is for what commands print; `module`: what the process runs."""
    command = [sys.executable, "-m", module]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], text=True, **pipes) as process:
        yield Server(process, folder)
        assert process.stdin
        process.stdin.close()  # its loop ends


def serve(command: Callable[[], None], strikes: Callable[[str, int, int], None] = lambda *strike: None) -> None:
    """Fork for each line, and call `command` with its arguments in sys.argv. `strikes` prepares the signal."""
    for line in sys.stdin:
        stage, step, number, output, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            file = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            strikes(stage, step, number)
            sys.argv = ["logratio", *arguments]
            command()
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)


def without_ray() -> None:
    """For the rest of this process: members live in it, and no cluster is joined or compared with."""
    Member.attach_log = lambda self, path: None  # type: ignore[method-assign] # it is this process's
    cluster.connected = nothing  # type: ignore[assignment]
    capacity.compared_with = lambda *arguments: []  # type: ignore[assignment]
    transport.RayTransport = transport.LocalTransport  # type: ignore[misc,assignment]


if __name__ == "__main__":
    without_ray()
    cluster.driver = nothing  # type: ignore[assignment]
    files.read_inputs = read_inputs  # type: ignore[assignment]
    SimulatedLearner.export = export_weights  # type: ignore[method-assign]
    serve(lambda: cli.main(simulated(Speeds())), strike)
