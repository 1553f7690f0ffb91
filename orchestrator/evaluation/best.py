"""Which checkpoint is the best by a held-out metric: a function of a run's evaluations, so a resume finds the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from configs.evaluation import HELDOUT, Best


def best_so_far(best: Best | None, evaluations: Mapping[str, Any], step: int) -> dict[str, Any] | None:
    """`metric`, `mode`, `step` and `value` of the best step with a known value, the earliest of equals; `step` is the
    last one made, which the evaluation after training is of. None without one, or without a wish for it. The weights
    before the first step are no candidate: they are the student's own."""
    if best is None:
        return None
    known = list(_values(best, evaluations, step))
    if not known:
        return None
    sign = 1.0 if best.mode == "max" else -1.0
    value, negative = max((sign * value, -at) for at, value in known)
    return {"metric": best.metric, "mode": best.mode, "step": -negative, "value": sign * value}


def _values(best: Best, evaluations: Mapping[str, Any], last: int) -> Iterator[tuple[int, float]]:
    of_set = evaluations if best.of_set == HELDOUT else evaluations["sets"].get(best.of_set, {})
    lines = {line["step"]: line for line in of_set.get("steps", ())}
    if of_set.get("after"):
        lines[last] = of_set["after"]
    for step, line in lines.items():
        if step and line.get(best.name) is not None:
            yield step, line[best.name]
