"""How a run ended: the messages that are printed after the live display."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from configs.refusal import RecipeError
from orchestrator import checkpoint
from orchestrator.preflight import disk
from orchestrator.surface.submission import resumed_as

if TYPE_CHECKING:
    from orchestrator.run import Run

console = Console(highlight=False)


@dataclass(frozen=True)
class Outcome:
    """`code`: exit code; `report`: path of the written page; `error`: message of a failure; `unwritten`: a message for
    each file that could not be written."""

    code: int
    training: Run
    report: Path | None
    error: str | None
    unwritten: tuple[str, ...] = ()

    def say(self, directory: Path) -> None:
        """Print the error, or answers and KL before and after; then the report's path."""
        from orchestrator.run import STOPPED

        if self.error:
            say_error(self.error)
        elif self.code == STOPPED:
            step = self.training.progress.step
            console.print(f"stopped at step {step}; go on with: logratio resume {resumed_as(directory)}")
        else:
            self._say_change(directory)
        for line in self.unwritten:
            say_error(line)
        if self.report:
            console.print(f"report: {self.report}", soft_wrap=True)

    def _say_change(self, directory: Path) -> None:
        from orchestrator.surface.display import answers_table
        from orchestrator.surface.report.page import held_out_answers

        tokenizer = self.training.inputs.tokenizer
        if answers := held_out_answers(directory, lambda ids: tokenizer.decode(list(ids)), greedy=True):
            console.print(answers_table(answers))
        before, after = self.training.progress.evaluations["before"], self.training.progress.evaluations["after"]
        if before and after and before["reverse_kl"]:
            change = 100.0 * (after["reverse_kl"] / before["reverse_kl"] - 1.0)
            teachers = self.training.recipe.objective.teachers
            between = any(swap["model"] in teachers for swap in self.training.swaps.so_far())
            swapped = "; another teacher was swapped in between" if between else ""
            console.print(
                f"reverse KL on held-out prompts: {before['reverse_kl']:.3f} -> {after['reverse_kl']:.3f} nats a token "
                f"({change:+.0f}%{swapped})"
            )


def first_of(error: BaseException) -> BaseException:
    """The first error in nested exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def described(failure: BaseException, directory: Path) -> str:
    """One readable line. The traceback goes to logs/driver.log, if the disk has room."""
    log, error = directory / "logs" / "driver.log", first_of(failure)
    if disk.is_full(failure):
        reason = disk.described(failure, directory)
    else:
        reason = f"{error or type(error).__name__}"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(failure)))
    except OSError as unwritten:
        return f"the run failed: {reason}; its traceback could not be written to {log} ({unwritten.strerror})"
    return f"the run failed: {reason}\n  traceback: {log}; resume: logratio resume {resumed_as(directory)}"


def say_error(text: str) -> None:
    print(f"logratio: {text}", file=sys.stderr, flush=True)


def write_results(results: Mapping[str, Any], out: Path) -> None:
    """Write the results as JSON. Raises RecipeError if the file cannot be written."""
    try:
        checkpoint.write_whole(out.absolute(), json.dumps(results, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise RecipeError(
            f"--out {out}: cannot be written ({error.strerror}); name a file in a folder of yours"
        ) from None
