"""Before any actor starts: can the code that a recipe names be imported, and can it be called as it will be?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from configs.names.own_code import imported, is_own
from configs.refusal import RecipeError, reason, shown
from configs.reward_rules import FunctionRule, OwnRule
from configs.schema import Recipe
from rewards.function import wanted


class _Named(NamedTuple):
    """Code that a key of the recipe names. `takes(code)` raises ValueError if it cannot be called as it will be."""

    key: str
    name: str
    what: str
    takes: Callable[[Any], Any] = callable


def check_own_code(recipe: Recipe) -> None:
    """Import all code of a user's own, as members will. Raises RecipeError."""
    for named in (*_engines(recipe), *_rewards(recipe)):
        _check(named)


def _engines(recipe: Recipe) -> Iterator[_Named]:
    engines = {"rollout": recipe.rollout, "teacher_rollout": recipe.teacher_rollout, "reward": recipe.reward}
    engines |= {f"scorer.{name}": recipe.scorer_of(name) for name in recipe.scored_models}
    if recipe.objective.loss:
        yield _Named("objective.loss", recipe.objective.loss, "a function of (student_logprobs, tokens)")
    named = {role: node.engine for role, node in engines.items()} | {"learner": recipe.learner.engine}
    yield from (_Named(f"{role}.engine", name, "a class of members") for role, name in named.items() if is_own(name))
    if is_own(recipe.rollout.carrier):
        yield _Named("rollout.carrier", recipe.rollout.carrier, "a class with publish and pull", _carries)


def _carries(carrier: Any) -> None:
    if lacking := [method for method in ("publish", "pull") if not callable(getattr(carrier, method, None))]:
        raise ValueError(f"has no {' and no '.join(lacking)}; see Carrier in orchestrator/weights/carriers.py")


def _rewards(recipe: Recipe) -> Iterator[_Named]:
    of_sets = {f"evaluate.sets.{name}.rules": one.rules or () for name, one in recipe.evaluate.sets.items()}
    named = {"reward.rules": recipe.reward.rules} | of_sets
    for key, rule in (
        (f"{where}.{number}", rule) for where, rules in named.items() for number, rule in enumerate(rules)
    ):
        if isinstance(rule, OwnRule):
            yield _Named(f"{key}.kind", rule.kind, "a function of (rule, text, tokens, row)")
        elif isinstance(rule, FunctionRule):
            yield _Named(f"{key}.function", rule.function, "a function", wanted)


def _check(named: _Named) -> None:
    key, name, what, takes = named
    try:
        found = imported(name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise RecipeError(
            f"{key}: {shown(name)} cannot be imported ({type(error).__name__}: {reason(error)}); put its "
            "folder on PYTHONPATH"
        ) from None
    if not callable(found):
        raise RecipeError(f"{key}: {shown(name)} cannot be called; give {what}")
    try:
        takes(found)
    except ValueError as error:
        raise RecipeError(f"{key}: {shown(name)}: {reason(error)}") from None
