"""A run's reports: to the person at the terminal, to its trackers, and to status.json for pages that watch it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.evaluation import HELDOUT
from orchestrator.surface.display import Display
from orchestrator.surface.trackers.feed import Feed

STATUS = "status.json"


class Reporting:
    """The observer of a run: what it is told goes to `display` and to `feed`."""

    def __init__(self, display: Display, feed: Feed, directory: Path) -> None:
        self._display = display
        self._feed = feed
        self._file = directory / STATUS
        self._status: dict[str, Any] = {}
        self._unwritten = False

    def phase(self, text: str) -> None:
        self._display.phase(text)

    def notice(self, text: str) -> None:
        self._display.notice(text)

    def step(self, line: Mapping[str, Any]) -> None:
        self._display.step(line)
        self._feed.step(line)

    def evaluated(self, when: str, result: Mapping[str, Any] | None, of: str = HELDOUT) -> None:
        self._display.evaluated(when, result, of)
        if result:
            named = result if of == HELDOUT else {f"{of}/{name}": value for name, value in result.items()}
            self._feed.evaluated(self._status.get("step", 0), named)

    async def status(self, status: Mapping[str, Any]) -> None:
        """Write the run's status, and hand it to the trackers."""
        self._status = dict(status)
        await self._pass_on()

    async def ended(self, exit_code: int) -> None:
        """The run has ended: status.json says so, and the trackers end."""
        if self._status:
            self._status |= {"exit": exit_code, "phase": "ended", "time": time.time()}
            await self._pass_on()
        await asyncio.to_thread(self._feed.close, exit_code)

    async def _pass_on(self) -> None:
        self._feed.status(self._status)
        text = json.dumps(self._status, allow_nan=False)
        try:
            await asyncio.to_thread(_replace, self._file, text)
        except OSError as error:  # a full disk: the run goes on, and the next status may fit
            if not self._unwritten:
                self._unwritten = True
                self.notice(f"{self._file} could not be written ({error.strerror}); a page that watches stands still")


def _replace(file: Path, text: str) -> None:
    """Write a file that a reader sees whole. It may be lost in a power cut: the next one comes in seconds."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    os.replace(partial, file)
