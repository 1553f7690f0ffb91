"""Which steps skipped an update because loss or gradient was not finite: a state machine, and a part of a checkpoint.

Such a step is counted as made: its batch is behind the run. When it took no update at all the weights have not moved,
so it makes no version and no checkpoint. IN_A_ROW such steps, one after the other, end the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

IN_A_ROW = 3
NAMED = 16  # uids that a line of text names


@dataclass(frozen=True)
class Skip:
    """`updates` that a step skipped of those that it was to make, and the samples of its batch. It `moved` where it
    took others."""

    updates: int
    moved: bool
    uids: tuple[str, ...]


@dataclass
class SkippedUpdates:
    """By step."""

    steps: dict[int, Skip] = field(default_factory=dict)

    def note(self, step: int, updates: int, moved: bool, uids: Iterable[str]) -> str:
        """A step skipped updates. Returns what a person is told."""
        self.steps[step] = skip = Skip(updates, moved, tuple(uids))
        what = "an update was skipped" if updates == 1 else f"{updates} updates were skipped"
        version = "" if moved else "; the weights have not moved, and make no new version"
        return f"step {step}: {what}, its loss or gradient is not finite{version}. Samples: {named(skip.uids)}"

    def moved(self, step: int) -> bool:
        """Whether a step that was made moved the weights."""
        return step not in self.steps or self.steps[step].moved

    def failure(self, step: int) -> str | None:
        """Why the run ends after a step; None if it goes on."""
        last = range(step - IN_A_ROW + 1, step + 1)
        if any(self.moved(one) for one in last):
            return None
        uids = [uid for one in last for uid in self.steps[one].uids]
        return (
            f"learner: loss or gradient was not finite in {IN_A_ROW} steps in a row, {last[0]} to {step}; the weights "
            f"are those before step {last[0]}, the newest checkpoint is untouched. Lower learner.optimizer.lr, or set "
            f"learner.optimizer.max_grad_norm, and look at the samples: {named(uids)}"
        )

    def to_state(self) -> list[dict[str, Any]]:
        """Plain values for a checkpoint and for summary.json."""
        return [
            {"step": step, "updates": skip.updates, "moved": skip.moved, "uids": list(skip.uids)}
            for step, skip in sorted(self.steps.items())
        ]

    @classmethod
    def from_state(cls, state: Iterable[dict[str, Any]]) -> SkippedUpdates:
        return cls({s["step"]: Skip(s["updates"], s["moved"], tuple(s["uids"])) for s in state})


def named(uids: Sequence[str]) -> str:
    """A batch's samples in a line of text: the first of them, and how many there are beside."""
    more = len(uids) - NAMED
    return ", ".join(uids[:NAMED]) + (f" and {more} more" if more > 0 else "")
