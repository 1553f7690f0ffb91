"""Combinations with adapters, and with the student's base as a model that the learner scores."""

from __future__ import annotations

from configs.node import STUDENT
from configs.objective import Route
from configs.rules.rule import Refusal, Rule
from configs.schema import Recipe


def _base_without_adapters(recipe: Recipe) -> Refusal:
    for name, model in recipe.models.items():
        if model.weights == "base" and recipe.learner.lora is None:
            return (
                f"models.{name}.weights: 'base' is the student without its adapters, and it has none; set "
                "learner.lora, or give the model a path"
            )
    return None


def _base_is_the_student(recipe: Recipe) -> Refusal:
    for name in recipe.objective.teachers:
        model = recipe.models[name]
        own = model.template == recipe.models[STUDENT].template and not model.privileged
        alone = len(recipe.objective.teachers) == 1 and recipe.objective.extrapolate is None
        if model.weights == "base" and own and alone and not recipe.objective.rewarded:
            return (
                f"models.{name}: the base behind the student's own prompt is the student as it starts, nothing to "
                "learn; give it a privileged system or prompt, or name it as the reference"
            )
    return None


def _base_scores(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    for name in recipe.base_models:
        if name in recipe.scorer:
            return f"scorer.{name}: the learner itself scores the student's base; remove it"
        if objective.support_of.get(name) == "topk":
            return f"objective.support: 'topk' of models.{name}, which the learner scores; set sampled or full"
        if isinstance(objective.target, Route) and name in objective.teachers:
            return f"objective.target: a route leads to scorers, and the learner scores models.{name}; give it a path"
        if objective.end_tokens == "class" and name in objective.target_models:
            return f"objective.end_tokens: models.{name} is the student's base and ends as it does; set it to same"
        if recipe.early_stop and name == next(iter(objective.teachers), None):
            return f"early_stop: models.{name} is scored by the learner, when responses have ended; remove it"
        if recipe.stream_tokens and not recipe.scored_models:
            return "stream_tokens: no scorer reads segments; the learner scores the base; set it to 0"
    return None


OF_ADAPTERS: tuple[Rule, ...] = (_base_without_adapters, _base_is_the_student, _base_scores)
