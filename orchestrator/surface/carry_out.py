"""From a recipe to an exit code: preflight, cluster, run, report, and signals on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.load import dump_recipe
from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.stopping import STOP_COMMAND, Ask, Signals
from orchestrator.surface import submission
from orchestrator.surface.ending import end, fail
from orchestrator.surface.engines import Engines
from orchestrator.surface.outcome import Outcome, console, say_error

if TYPE_CHECKING:
    from orchestrator.pools.layout import MemberSpecs
    from orchestrator.preflight.comparison import Comparison
    from orchestrator.preflight.files import Inputs
    from orchestrator.run import Run
    from orchestrator.surface.display import Display
    from orchestrator.surface.trackers.feed import Feed

SIGNALS = (signal.SIGINT, signal.SIGTERM, STOP_COMMAND)
STOPPED = 3  # exit code


class StoppedEarly(BaseException):
    """A signal asks to stop before the event loop runs."""


class Handlers:
    """Signal handlers: before the event loop runs they raise StoppedEarly, then they ask the run to stop, and after it
    they note that a next run should not begin. A signal that asks AT_ONCE again ends this process, and with it all that
    it started. `leave` writes what a resume needs of a run that has not begun."""

    def __init__(self) -> None:
        self.signals = Signals()
        self.ask = Ask.NOT  # by the last signal
        self.leave: Callable[[], None] = lambda: None

    def before_the_loop(self) -> None:
        """Install the handlers; again after code that replaces them, as starting Ray does."""
        for number in SIGNALS:
            signal.signal(number, self._raise)

    def heed(self) -> None:
        """Raise StoppedEarly if a signal has come: what a handler raises in a destructor is lost."""
        if self.asked:
            raise StoppedEarly

    def in_the_loop(self, run: Run) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._stop, run, number)
        if self.asked:
            run.stop(self.ask)

    @property
    def asked(self) -> bool:
        return self.ask is not Ask.NOT

    def after_the_loop(self) -> None:
        self.leave = lambda: None  # the run has written what it had to
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _raise(self, number: int, frame: Any) -> None:
        self._note(number, frame)
        raise StoppedEarly

    def _note(self, number: int, frame: Any) -> None:
        self.ask = self.signals.heard(number)
        if self.ask is Ask.AT_ONCE:
            self.leave()
            sys.stdout.flush()
            os._exit(STOPPED)

    def _stop(self, run: Run, number: int) -> None:
        self.ask = self.signals.heard(number)
        if self.ask is Ask.AT_ONCE and run.stopping.ask is Ask.AT_ONCE:
            submission.mark_stopped(run.directory)  # twice at once is a person
            os._exit(STOPPED)
        run.stop(self.ask)


def carry_out(
    recipe: Recipe, directory: Path, members: MemberSpecs | None = None, kind: Callable[..., Run] | None = None
) -> int:
    """Carry out a run; returns its exit code. A stopped run ends this process without waiting for its threads.
    `members`: see build_pools; `kind`: what makes the run, if not Run."""
    return ended(carry_out_one(recipe, directory, Handlers(), Engines(members), kind))


def ended(code: int) -> int:
    """The exit code; of what was stopped this process ends here, since a thread may still be reading a checkpoint."""
    if code == STOPPED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(STOPPED)
    return code


def carry_out_one(
    recipe: Recipe,
    directory: Path,
    handlers: Handlers,
    engines: Engines,
    kind: Callable[..., Run] | None = None,
) -> int:
    """Carry out a run under handlers, and on engines, that may have served another; returns its exit code."""
    from orchestrator.preflight import cluster
    from orchestrator.surface.display import Display

    def leave() -> None:
        try:
            checkpoint.keep_recipe(directory, dump_recipe(recipe))
            mark_if_stopped(directory, handlers)
        except OSError as error:  # a full disk: there is nothing yet that a resume would go on from
            say_error(f"recipe.yaml could not be written: {error}; run it again")
            return
        console.print(f"stopped before it began; go on with: logratio resume {submission.resumed_as(directory)}")

    handlers.leave = leave
    handlers.before_the_loop()
    with cluster.own_name(directory), removed_if_unused(directory):
        try:
            with Display(recipe.run.steps) as display:
                display.phase(f"run {recipe.run.name}: reading the recipe, its prompts and tokenizers")
                outcome = _run_on_cluster(recipe, directory, display, handlers, engines, kind)
        except (StoppedEarly, SystemExit):  # Ray's handler of SIGTERM exits while Ray starts
            leave()
            return STOPPED
        if outcome.code == STOPPED:
            mark_if_stopped(directory, handlers)
        outcome.say(directory)
    return outcome.code


def mark_if_stopped(directory: Path, handlers: Handlers) -> None:
    """Leave a mark if a person's signal stopped the run. A full disk leaves none, and is said."""
    try:
        if handlers.signals.by_person:
            submission.mark_stopped(directory)
    except OSError as error:
        say_error(submission.unmarked(error))


def _run_on_cluster(
    recipe: Recipe,
    directory: Path,
    display: Display,
    handlers: Handlers,
    engines: Engines,
    kind: Callable[..., Run] | None,
) -> Outcome:
    from orchestrator.preflight import cluster, files
    from orchestrator.preflight.environment import job_warnings

    for warning in job_warnings(recipe, os.environ):
        display.notice(f"warning: {warning}")
    inputs = files.read_inputs(recipe)
    if not cluster.joins_cluster(recipe):
        recipe = _fitted(recipe, inputs, directory, display, engines)
    handlers.heed()
    display.phase("starting Ray")
    with cluster.connected(recipe, directory) as dashboard:
        handlers.before_the_loop()
        handlers.heed()
        if dashboard:
            display.notice(f"Ray's dashboard: http://{dashboard} (its token: `ray get-auth-token`)")
        if cluster.joins_cluster(recipe):
            recipe = _fitted(recipe, inputs, directory, display, engines)
        runner = asyncio.Runner()
        try:
            outcome = runner.run(_drive(recipe, directory, inputs, display, handlers, engines, kind))
        except BaseException:
            runner.close()
            raise
        if outcome.code != STOPPED:
            runner.close()  # takes the loop's handlers away
            handlers.after_the_loop()
        return outcome


async def _drive(
    recipe: Recipe,
    directory: Path,
    inputs: Inputs,
    display: Display,
    handlers: Handlers,
    engines: Engines,
    kind: Callable[..., Run] | None,
) -> Outcome:
    from orchestrator.run import DONE, FAILED, Run
    from orchestrator.surface.driver import collect_seldom, serve_commands
    from orchestrator.surface.reporting import Reporting

    collect_seldom()
    pools = await engines.pools(recipe, inputs.vocabulary, directory / "logs")
    reporting = Reporting(display, _feed(recipe, directory, display), directory)
    training = (kind or Run)(recipe, directory, inputs, pools, reporting)
    display.working = training.working
    handlers.in_the_loop(training)
    code, error = FAILED, None
    try:
        async with serve_commands(training, display, reporting):
            code = await training.execute()
    except Exception as failure:
        code, error = await fail(training, failure)
    finally:
        display.phase("stopping the roles")
        await engines.end(pools, code == DONE, training.stopping.hurried)
    display.phase("writing the report")
    await reporting.ended(code)
    return await end(training, code, error, inputs.tokenizer)


def _feed(recipe: Recipe, directory: Path, display: Display) -> Feed:
    from orchestrator.surface.trackers.feed import Feed
    from orchestrator.surface.trackers.libraries import TRACKERS
    from orchestrator.surface.trackers.prometheus import Prometheus

    named = [partial(TRACKERS[name], recipe, directory) for name in recipe.metrics.trackers]
    return Feed([partial(Prometheus, recipe.run.name, recipe.scored_models), *named], display.notice)


@contextlib.contextmanager
def removed_if_unused(directory: Path) -> Iterator[None]:
    """Remove the directory of a run that was refused before it began: it would block the run's name."""
    try:
        yield
    finally:
        if {f.name for f in directory.iterdir()} <= {"lock", "control.json"}:
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()


def _fitted(recipe: Recipe, inputs: Inputs, directory: Path, display: Display, engines: Engines) -> Recipe:
    """The recipe with the numbers that follow from the machines' memory. Raises RecipeError where they cannot hold the
    run."""
    from orchestrator.preflight import capacity, cluster
    from orchestrator.preflight.budgets.fitted import fitted_to, unsized
    from orchestrator.preflight.disk import refused_if_full

    survey = cluster.survey(recipe, directory)
    if not engines.compared:
        _warn_or_refuse(capacity.compared_with(recipe, inputs, survey), display)
    if not any(unsized(recipe)):
        return recipe
    whole, lines = fitted_to(recipe, inputs.extent, capacity.read_sizes(recipe), survey.machines)
    for line in lines:
        display.notice(line)
    if (file := directory / submission.RECIPE).exists():  # of a run that was stopped before it knew the numbers
        with refused_if_full(directory):
            checkpoint.write_whole(file, dump_recipe(whole))
    return whole


def _warn_or_refuse(findings: Sequence[Comparison], display: Display) -> None:
    """Notice what is tight. Raises RecipeError with a line for each thing that is short."""
    from orchestrator.preflight.comparison import refuse

    refuse(findings)
    for finding in findings:
        if finding.grade == "tight":
            display.notice(f"warning: {finding.line}")
