"""Steps that skipped updates because loss or gradient was not finite. Saved in checkpoints.

Such a step counts as made, and its batch as trained. If it skipped all its updates, the weights have not moved: it
makes no version and no checkpoint. IN_A_ROW such steps, one after the other, end the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

IN_A_ROW = 3
NAMED = 16  # uids listed in a message, at most


@dataclass(frozen=True)
class Skip:
    """A step with skipped updates: how many, whether others `moved` the weights, and the samples of its batch."""

    updates: int
    moved: bool
    uids: tuple[str, ...]


@dataclass
class SkippedUpdates:
    """By step."""

    steps: dict[int, Skip] = field(default_factory=dict)

    def note(self, step: int, updates: int, moved: bool, uids: Iterable[str]) -> str:
        """Note the skipped updates of a step. Returns the notice for a person."""
        self.steps[step] = skip = Skip(updates, moved, tuple(uids))
        what = "an update was skipped" if updates == 1 else f"{updates} updates were skipped"
        version = "" if moved else "; the weights have not moved, and make no new version"
        return f"step {step}: {what}, its loss or gradient is not finite{version}. Samples: {named(skip.uids)}"

    def moved(self, step: int) -> bool:
        """Whether a step moved the weights."""
        return step not in self.steps or self.steps[step].moved

    def failure(self, step: int) -> str | None:
        """The error that ends the run after a step; None if it goes on."""
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
    """The first NAMED uids, and the number of the others."""
    more = len(uids) - NAMED
    return ", ".join(uids[:NAMED]) + (f" and {more} more" if more > 0 else "")
