"""The rules by which a recipe ends a run before its last step, once a metric is where it should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.evaluation import HELDOUT
from configs.schema import Recipe, StopRule
from orchestrator.progress import Progress


@dataclass
class StopRules:
    """Counts in `progress` how many values in a row each rule held for; `end_early(why)` ends the run."""

    recipe: Recipe
    progress: Progress
    end_early: Callable[[str], None]

    def stepped(self, line: Mapping[str, Any]) -> None:
        """Judge a step by its line of metrics."""
        self._judge(line)

    def measured(self, before: Mapping[str, int]) -> None:
        """Judge the evaluations since there were so many of each set: see `evaluations`."""
        for of_set, lines in self._between_steps().items():
            for line in lines[before.get(of_set, 0) :]:
                self._judge({f"{of_set}.{name}": value for name, value in line.items()})

    def evaluations(self) -> dict[str, int]:
        """How many evaluations between steps there are of each held-out set."""
        return {name: len(lines) for name, lines in self._between_steps().items()}

    def _between_steps(self) -> dict[str, Sequence[Mapping[str, Any]]]:
        found = self.progress.evaluations
        return {HELDOUT: found["steps"]} | {name: of_set["steps"] for name, of_set in found["sets"].items()}

    def _judge(self, values: Mapping[str, Any]) -> None:
        for rule in self.recipe.run.stop:
            value, streaks = values.get(rule.metric), self.progress.streaks
            streaks[str(rule)] = streak(rule, streaks.get(str(rule), 0), value)
            if value is not None and streaks[str(rule)] >= rule.for_steps and not self.progress.ended_early:
                self.end_early(f"{rule} ({value:.4g})")


def streak(rule: StopRule, so_far: int, value: float | None) -> int:
    """How many known values in a row a rule holds for. An unknown value neither counts nor breaks the row."""
    if value is None:
        return so_far
    held = value > rule.above if rule.above is not None else rule.below is not None and value < rule.below
    return so_far + 1 if held else 0
