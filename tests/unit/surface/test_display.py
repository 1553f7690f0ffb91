"""Progress where no terminal is attached: one line a step, and a heartbeat in between that seldom comes."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from orchestrator.surface import display
from orchestrator.surface.display import Display

LINE = {"tokens_generated": 100, "seconds_step": 2.0, "reverse_kl": 0.5, "entropy": 1.0}


def test_a_step_is_one_line() -> None:
    log = io.StringIO()
    with Display(2, Console(file=log, highlight=False)) as shown:
        shown.phase("training")
        for step in (1, 2):
            shown.step(LINE | {"step": step})
            shown.phase("training")
    lines = log.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["training", "step 1/2", "step 2/2"]


def test_a_heartbeat_comes_after_silence_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert display.HEARTBEAT_SECONDS == 30.0
    log = io.StringIO()
    with Display(2, Console(file=log, highlight=False)) as shown:
        shown.phase("starting the engines")
        time.sleep(1.2)
        assert log.getvalue().splitlines() == ["starting the engines"]
        monkeypatch.setattr(display, "HEARTBEAT_SECONDS", 0.5)
        time.sleep(1.2)
    assert "... starting the engines (" in log.getvalue()
