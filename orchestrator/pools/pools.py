"""The pools of a run, by role."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from configs.schema import Recipe
from orchestrator.pools.pool import Pool
from orchestrator.pools.transport import GangSpec


@dataclass(frozen=True)
class Pools:
    """Every role of a run. `teacher_rollout` and `dataset` write responses where the student does not.

    `swapped_scorer` says what the scorers of a model are made of after a swap; runs whose recipe has swaps need it.
    """

    rollout: Pool | None
    dataset: Pool | None
    scorers: Mapping[str, Pool]
    reward: Pool
    learner: Pool
    teacher_rollout: Pool | None = None
    swapped_scorer: Callable[[Recipe, str, int], GangSpec] | None = None

    def writers(self) -> dict[str, Pool]:
        """Pools that write responses, by source."""
        named = {"student": self.rollout, "teacher": self.teacher_rollout, "dataset": self.dataset}
        return {source: pool for source, pool in named.items() if pool is not None}

    def all(self) -> dict[str, Pool]:
        """Pools by role name, in the order of the data flow."""
        named = {"rollout": self.rollout, "teacher_rollout": self.teacher_rollout, "dataset": self.dataset}
        named |= {f"scorer.{model}": pool for model, pool in self.scorers.items()}
        named |= {"reward": self.reward, "learner": self.learner}
        return {role: pool for role, pool in named.items() if pool is not None}
