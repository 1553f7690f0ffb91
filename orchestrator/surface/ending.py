"""The end of every run: write summary and report. What did not fit on a full disk is tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.load import RecipeError
from orchestrator.surface.outcome import Outcome, described, first_of

if TYPE_CHECKING:
    from orchestrator.run import Run


async def fail(training: Run, failure: Exception) -> tuple[int, str]:
    """Summarise a failed run; returns its exit code and error message. Raises the failure if it is a RecipeError."""
    from orchestrator.run import FAILED

    if isinstance(error := first_of(failure), RecipeError):
        raise error from None
    message = await asyncio.to_thread(described, failure, training.directory)
    await training.summarise(FAILED)
    return FAILED, message


async def end(training: Run, code: int, error: str | None, tokenizer: Any) -> Outcome:
    """Write the report, and a summary that could not be written before: stopped roles free disk space."""
    unwritten: list[str] = []
    if training.unsummarised:
        await training.summarise(code)
    if training.unsummarised:
        unwritten.append(f"summary.json could not be written: {training.unsummarised}")
    report = None
    try:
        report = await asyncio.to_thread(_write_report, training.directory, tokenizer)
    except OSError as failure:
        unwritten.append(f"report.html could not be written: {failure}")
    return Outcome(code, training, report, error, tuple(unwritten))


def _write_report(directory: Path, tokenizer: Any) -> Path:
    from orchestrator.surface.report.page import write_report

    return write_report(directory, lambda ids: tokenizer.decode(list(ids)))
