"""Who is told what a run does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Observer(Protocol):
    """Who watches a run: the terminal, the control actor, a test."""

    def phase(self, text: str) -> None:
        """The run has entered a phase, said in a few words."""
        ...

    def notice(self, text: str) -> None:
        """Something a person should know, though the run goes on."""
        ...

    def step(self, line: Mapping[str, Any]) -> None:
        """A step is done; its line of metrics.jsonl."""
        ...

    def evaluated(self, when: str, result: Mapping[str, Any] | None) -> None:
        """An evaluation is done: `before`, `after`, or `step N`."""
        ...
