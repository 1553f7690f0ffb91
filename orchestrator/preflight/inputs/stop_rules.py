"""Before any actor starts: do the rules of `run.stop` name metrics that the run has?"""

from __future__ import annotations

from actors.metrics import STOP_METRICS
from configs.refusal import RecipeError, shown
from configs.schema import Recipe
from orchestrator.preflight.inputs.held_out import measured


def check_stop_rules(recipe: Recipe) -> None:
    """Raises RecipeError."""
    for number, rule in enumerate(recipe.run.stop):
        key = f"run.stop.{number}.metric: {shown(rule.metric)}"
        of_set, dot, name = rule.metric.partition(".")
        known = measured(recipe).get(of_set, ()) if dot else STOP_METRICS
        if dot and not known:
            raise RecipeError(f"{key} names no held-out set; allowed: {sorted(measured(recipe))}")
        if (name or of_set) not in known:
            raise RecipeError(f"{key} is no metric; allowed: {', '.join(known)}")
        if dot and not recipe.evaluate.every_of(of_set):
            raise RecipeError(f"{key} is not measured between steps; set evaluate.every")
