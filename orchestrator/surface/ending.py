"""What a run leaves at its end, however it ended: summary and report, written again where there was no room before."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.load import RecipeError
from orchestrator.surface.outcome import Outcome, described, first_of

if TYPE_CHECKING:
    from orchestrator.run import Run


async def fail(training: Run, failure: Exception) -> tuple[int, str]:
    """The exit code of a failed run and what is said of it. Raises RecipeError where that is what went wrong."""
    from orchestrator.run import FAILED

    if isinstance(error := first_of(failure), RecipeError):
        raise error from None
    said = await asyncio.to_thread(described, failure, training.directory)
    await training.summarise(FAILED)
    return FAILED, said


async def end(training: Run, code: int, said: str | None, tokenizer: Any) -> Outcome:
    """Write what there was no room for, now that the roles are gone, and the report."""
    unwritten: list[str] = []
    if training.unsummarised:
        await training.summarise(code)
    if training.unsummarised:
        unwritten.append(f"summary.json could not be written: {training.unsummarised}")
    report = None
    try:
        report = await asyncio.to_thread(_write_report, training.directory, tokenizer)
    except OSError as error:
        unwritten.append(f"report.html could not be written: {error}")
    return Outcome(code, training, report, said, tuple(unwritten))


def _write_report(directory: Path, tokenizer: Any) -> Path:
    from orchestrator.surface.report import write_report

    return write_report(directory, lambda ids: tokenizer.decode(list(ids)))
