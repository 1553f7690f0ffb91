"""The exact expected gradient of an objective: the learner's loss on every response of a tiny language, in float64.

Nothing is sampled or approximated: the expected gradient is a sum over responses. It is compared with the gradients of
divergences implemented from their definitions. `logratio audit` prints `describe(audit(...))`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from audit.findings import Finding
from audit.function import audit_function
from audit.recipe import audit_recipe
from audit.report import Audit, Match, Staleness, describe
from audit.verdicts import Claim
from configs.objective import Objective as ObjectiveConfig
from objectives.tokens import Tokens

__all__ = ["Audit", "Claim", "Finding", "Match", "Staleness", "audit", "describe"]


def audit(
    target: ObjectiveConfig | Callable[[Tensor, Tokens], Tensor],
    claims: Claim | None = None,
    teacher: str = "teacher",
    step: int = 1,
    seed: int = 0,
) -> Audit:
    """Audit a recipe's objective, or a user's own loss: (student log-probs [n, V], tokens) -> [n] losses or a scalar.

    `claims`: the KL whose gradient a function should have; by default the nearest. `teacher`: the slot of
    `tokens.scores` that it reads. `step`: the learner step whose dials apply. Raises ValueError for a function that
    returns another shape.
    """
    if isinstance(target, ObjectiveConfig):
        return audit_recipe(target, step, seed)
    return audit_function(target, claims, teacher, seed)
