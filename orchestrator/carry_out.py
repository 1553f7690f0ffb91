"""From a recipe to an exit code: preflight, cluster, run, report; and whatever stops it on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.load import dump_recipe
from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.ending import end, fail
from orchestrator.outcome import Outcome, console, say_error
from orchestrator.stopping import STOP_COMMAND, Ask, Signals

if TYPE_CHECKING:
    from orchestrator.display import Display
    from orchestrator.finding import Finding
    from orchestrator.preflight import Inputs
    from orchestrator.run import Run

SIGNALS = (signal.SIGINT, signal.SIGTERM, STOP_COMMAND)
STOPPED = 3


class StoppedEarly(BaseException):
    """A signal asks to stop, and no step is under way: there is no loop yet."""


class Handlers:
    """Python's own signal handlers raise until there is a loop, which has its own. Whoever asks for the third time
    gets the end of this process; all that it started ends with it."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._signals = Signals()
        self._leave = leave  # what a resume needs of a run that has not begun

    def before_the_loop(self) -> None:
        """Also after whatever has put other handlers in their place, as starting Ray does."""
        for number in SIGNALS:
            signal.signal(number, self._raise)

    def in_the_loop(self, run: Run) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._tell, run, number)

    def _raise(self, number: int, frame: Any) -> None:
        if self._signals.heard(number) is Ask.AT_ONCE:
            self._leave()
            sys.stdout.flush()
            os._exit(STOPPED)
        raise StoppedEarly

    def _tell(self, run: Run, number: int) -> None:
        ask = self._signals.heard(number)
        if ask is Ask.AT_ONCE and run.stopping.ask is Ask.AT_ONCE:
            os._exit(STOPPED)
        run.stop(ask)


def carry_out(recipe: Recipe, directory: Path) -> int:
    """The exit code of a run; a run that was stopped ends this process by itself, whatever its threads still do."""
    from orchestrator import cluster
    from orchestrator.display import Display

    def leave() -> None:
        try:
            checkpoint.keep_recipe(directory, dump_recipe(recipe))
        except OSError as error:  # a full disk: there is nothing yet that a resume would go on from
            say_error(f"recipe.yaml could not be written: {error}; run it again")
            return
        console.print(f"stopped before it began; go on with: logratio resume {directory.name}")

    handlers = Handlers(leave)
    handlers.before_the_loop()
    with cluster.own_name(directory), _removed_if_unused(directory):
        try:
            with Display(recipe.run.steps) as display:
                display.phase(f"run {recipe.run.name}: reading the recipe, its prompts and tokenizers")
                outcome = _run_on_cluster(recipe, directory, display, handlers)
        except (StoppedEarly, SystemExit):  # Ray's handler of SIGTERM exits while Ray starts
            leave()
            return STOPPED
        outcome.say(directory)
    if outcome.code == STOPPED:  # a thread may still be reading a checkpoint
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(STOPPED)
    return outcome.code


def _run_on_cluster(recipe: Recipe, directory: Path, display: Display, handlers: Handlers) -> Outcome:
    from orchestrator import capacity, cluster, preflight

    inputs = preflight.read_inputs(recipe)
    if not cluster.joins_cluster(recipe):
        _warn_or_refuse(capacity.compared_with_machines(recipe, inputs, directory), display)
    display.phase("starting Ray")
    with cluster.connected(recipe, directory):
        handlers.before_the_loop()
        if cluster.joins_cluster(recipe):
            _warn_or_refuse(capacity.compared_with_machines(recipe, inputs, directory), display)
        runner = asyncio.Runner()
        try:
            outcome = runner.run(_drive(recipe, directory, inputs, display, handlers))
        except BaseException:
            runner.close()
            raise
        if outcome.code != STOPPED:
            runner.close()
        return outcome


async def _drive(recipe: Recipe, directory: Path, inputs: Inputs, display: Display, handlers: Handlers) -> Outcome:
    from orchestrator.driver import collect_seldom, serve_commands
    from orchestrator.layout import build_pools
    from orchestrator.run import Run
    from orchestrator.transport import RayTransport

    collect_seldom()
    pools = build_pools(recipe, RayTransport(), inputs.vocabulary, directory / "logs")
    training = Run(recipe, directory, inputs, pools, display)
    display.working = training.working
    handlers.in_the_loop(training)
    said = None
    try:
        async with serve_commands(training, display):
            code = await training.execute()
    except Exception as failure:
        code, said = await fail(training, failure)
    finally:
        display.phase("stopping the roles")
        at_once = training.stopping.hurried
        await asyncio.gather(*(pool.stop(at_once) for pool in pools.all().values()))
    display.phase("writing the report")
    return await end(training, code, said, inputs.tokenizer)


@contextlib.contextmanager
def _removed_if_unused(directory: Path) -> Iterator[None]:
    """A run refused before it began leaves no directory that would block its name."""
    try:
        yield
    finally:
        if {f.name for f in directory.iterdir()} <= {"lock", "control.json"}:
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()


def _warn_or_refuse(findings: Sequence[Finding], display: Display) -> None:
    """Before a run starts: say what is tight. Raises RecipeError with a line for everything that is short."""
    from orchestrator.finding import refuse

    refuse(findings)
    for finding in findings:
        if finding.grade == "tight":
            display.notice(f"warning: {finding.line}")
