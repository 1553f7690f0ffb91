"""The interface through which a run reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from configs.evaluation import HELDOUT


class Observer(Protocol):
    """Watches a run: the terminal, or a test."""

    def phase(self, text: str) -> None:
        """The run enters a phase; `text` names it in a few words."""
        ...

    def notice(self, text: str) -> None:
        """A message for a person; the run goes on."""
        ...

    def step(self, line: Mapping[str, Any]) -> None:
        """A step is done; its line of metrics.jsonl."""
        ...

    def evaluated(self, when: str, result: Mapping[str, Any] | None, of: str = HELDOUT) -> None:
        """An evaluation of a held-out set is done: `before`, `after`, or `step N`."""
        ...
