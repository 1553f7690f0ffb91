"""`logratio sweep`: arms one after the other, on one Ray cluster and engines that stay warm. An arm is a run like any
other.

What is done stays; what was cut short goes on; what failed is tried again by the next call. Where a sweep stands
follows from where its arms stand.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.hardware import cpu_has_bf16, resolve_dtypes
from configs.refusal import RecipeError
from configs.schema import Recipe
from orchestrator import checkpoint
from orchestrator.preflight import capacity, cluster, files
from orchestrator.preflight.comparison import refuse
from orchestrator.surface import checked, submission
from orchestrator.surface.carry_out import STOPPED, Handlers, StoppedEarly, carry_out_one, removed_if_unused
from orchestrator.surface.outcome import console, say_error
from orchestrator.surface.research.grid import Arm
from orchestrator.surface.research.warm import WarmEngines
from orchestrator.surface.submission import Standing

if TYPE_CHECKING:
    from orchestrator.pools.layout import MemberSpecs

FAILED = 1  # exit code
SWEEP = "sweep.json"


def carry_out_sweep(directory: Path, arms: Sequence[Arm], resume: bool, members: MemberSpecs | None = None) -> int:
    """Carry out the arms that are not done; returns 0, 1 if an arm failed, or 3 if it was stopped. Arms that a person
    stopped are left alone unless they are to `resume`. Raises RecipeError before the first arm begins."""
    handlers = Handlers()
    handlers.before_the_loop()
    with cluster.own_name(directory), removed_if_unused(directory):
        handlers.leave = lambda: console.print(_stopped(directory))
        if resume:
            for arm in arms:
                submission.forget_stop(_folder(directory, arm))
        try:
            code = _on_one_cluster(directory, arms, handlers, members)
        except (StoppedEarly, SystemExit):  # Ray's handler of SIGTERM exits while Ray starts
            handlers.leave()
            code = STOPPED
        record(directory, arms)
    return code


def _on_one_cluster(directory: Path, arms: Sequence[Arm], handlers: Handlers, members: MemberSpecs | None) -> int:
    stands = [submission.standing(_folder(directory, arm)) for arm in arms]
    left = [arm for arm, stand in zip(arms, stands, strict=True) if stand in (Standing.NEW, Standing.UNFINISHED)]
    code = STOPPED if Standing.STOPPED in stands else 0
    console.print(f"{len(arms)} arms: {len(left)} to go, {stands.count(Standing.DONE)} done", highlight=False)
    if not left:
        return code
    recipes = [_recipe(directory, arm) for arm in left]
    _check(left, recipes, directory)
    record(directory, arms)
    with cluster.driver(recipes[0]), _warm(directory, recipes[0], members) as engines:
        handlers.before_the_loop()
        _compare_joined(left, recipes, directory)
        for number, (arm, recipe) in enumerate(zip(left, recipes, strict=True), 1):
            if handlers.asked:
                handlers.leave()
                return STOPPED
            console.print(f"arm {number} of {len(left)}, {arm.key}: {arm.label}", markup=False, soft_wrap=True)
            ended = _carry_out(directory, arm, recipe, handlers, engines)
            record(directory, arms)
            if ended == STOPPED:
                return STOPPED
            code = code or ended
            handlers.leave = lambda: console.print(_stopped(directory))
    return code


@contextlib.contextmanager
def _warm(directory: Path, recipe: Recipe, members: MemberSpecs | None) -> Iterator[WarmEngines]:
    """Engines for all arms. What is left of them ends with the sweep."""
    engines = WarmEngines(directory, members)
    try:
        yield engines
    finally:
        asyncio.run(engines.close())
        cluster.sweep(engines.placed(recipe))


def _carry_out(directory: Path, arm: Arm, recipe: Recipe, handlers: Handlers, engines: WarmEngines) -> int:
    """One arm; its exit code. Another arm may still succeed where this one failed."""
    try:
        return carry_out_one(recipe, _folder(directory, arm), handlers, engines)
    except RecipeError as error:
        for line in error.lines:
            say_error(f"{arm.label}: {line}")
        return FAILED


def _check(arms: Sequence[Arm], recipes: Sequence[Recipe], directory: Path) -> None:
    """Check files, and the machine where the cluster starts here, for all arms before the first begins. Raises
    RecipeError."""
    for arm, recipe in zip(arms, recipes, strict=True):
        with _of(arm):
            checked.environment(recipe, directory)
            inputs = files.read_inputs(recipe)
            if not cluster.joins_cluster(recipe):
                _compare(recipe, inputs, directory)


def _compare_joined(arms: Sequence[Arm], recipes: Sequence[Recipe], directory: Path) -> None:
    """Compare all arms with a cluster that is joined now, while none of their engines is there. Raises RecipeError."""
    for arm, recipe in zip(arms, recipes, strict=True):
        if cluster.joins_cluster(recipe):
            with _of(arm):
                _compare(recipe, files.read_inputs(recipe), directory)


def _compare(recipe: Recipe, inputs: files.Inputs, directory: Path) -> None:
    found = capacity.compared_with_machines(recipe, inputs, directory)
    refuse(found)
    for line in (one.line for one in found if one.grade == "tight"):
        console.print(f"warning: {line}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def _of(arm: Arm) -> Iterator[None]:
    """A refusal names the arm."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(*(f"{arm.label}: {line}" for line in error.lines)) from None


def _recipe(directory: Path, arm: Arm) -> Recipe:
    """The recipe that an arm began with, else its own."""
    folder = _folder(directory, arm)
    begun = (folder / submission.RECIPE).exists()
    return submission.recorded_recipe(folder) if begun else resolve_dtypes(arm.recipe, cpu_has_bf16())


def _folder(directory: Path, arm: Arm) -> Path:
    return directory / arm.recipe.run.name


def _stopped(directory: Path) -> str:
    return f"stopped between two arms of {directory.name}; the same command goes on"


def record(directory: Path, arms: Sequence[Arm]) -> None:
    """Write sweep.json: of each arm what it sets, its run, and how that stands. A full disk is said."""
    told = [_told(directory, arm) for arm in arms]
    try:
        checkpoint.write_whole(directory / SWEEP, json.dumps({"format": 1, "arms": told}, indent=1))
    except OSError as error:
        say_error(f"{SWEEP} could not be written: {error}")


def _told(directory: Path, arm: Arm) -> dict[str, Any]:
    folder = _folder(directory, arm)
    stands = submission.standing(folder).value
    return {
        "key": arm.key,
        "sets": list(arm.sets),
        "run": folder.name,
        "stands": stands,
        "exit": submission.exit_code(folder),
    }
