"""Combinations that are valid and rarely intended: allowed, with a line of warning."""

from __future__ import annotations

from urllib.parse import urlsplit

from configs.node import STUDENT
from configs.rules.rule import Refusal, Rule
from configs.schema import Recipe


def _forward_on_the_students_support(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if objective.support != "topk" or objective.topk_of != "student" or objective.reverse_weight == 1.0:
        return None
    return (
        "objective.topk_of: forward KL on the student's top-k is nearly blind to what the teacher has and the student "
        "lacks; use topk_of: teacher or union"
    )


def _reverse_on_a_renormalised_support(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if objective.tail != "renormalise" or objective.topk_of != "teacher" or objective.reverse_weight != 1.0:
        return None
    return (
        "objective.tail: renormalised reverse KL has no gradient off the support: mass that leaves it never comes "
        "back; use tail: bucket"
    )


def _dropped_tail(recipe: Recipe) -> Refusal:
    if recipe.objective.tail != "drop":
        return None
    return (
        "objective.tail: 'drop' is no divergence: it may be negative and falls as mass leaves the support; use bucket"
    )


def _clipped_forward(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if objective.clip.log_ratio is None or objective.distributional or objective.reverse_weight == 1.0:
        return None
    return (
        "objective.clip: a clipped sampled forward KL no longer covers the teacher's modes; use support: topk or full"
    )


def _clipped_extrapolation(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    normalised = objective.baseline == "exact" and not objective.discount
    if objective.extrapolate is None or objective.clip.log_ratio is None or normalised:
        return None
    return (
        "objective.clip: without its normaliser the extrapolated target's log-ratio is off by a number of its prefix, "
        "and the clip bounds it there; use support: full, or no clip"
    )


def _divided_beta(recipe: Recipe) -> Refusal:
    objective = recipe.objective
    if objective.reference is None or objective.outcome.scale != "std":
        return None
    if objective.reference.placement != "reward_sum":
        return None
    return "objective.outcome.scale: dividing by the group's std divides reference.beta too; scale: none keeps J exact"


def _scorer_turns_without_a_gpu(recipe: Recipe) -> Refusal:
    for models in recipe.scorers_in_turns.values():
        if not any(recipe.scorer_of(model).resources.gpus for model in models):
            return (
                f"scorer.{models[0]}.turns: none of {', '.join(models)} has a share of a GPU, so turns free nothing "
                "and scorers wait for each other; remove it"
            )
    return None


def _turns_without_a_gpu(recipe: Recipe) -> Refusal:
    if not recipe.colocate or any(size.resources.gpus for size in recipe.roles.values()):
        return None
    return "colocate: no role has a share of a GPU, so turns free nothing and roles wait for each other; remove it"


def _arguments_that_one_template_lacks(recipe: Recipe) -> Refusal:
    given = recipe.models[STUDENT].template
    for name in recipe.served_models:
        model = recipe.models[name]
        if lacking := [argument for argument in given if argument not in model.template]:
            return (
                f"models.{name}.template: lacks the student's {lacking[0]}, so that it reads another kind of prompt; "
                "give it the same"
            )
    return None


def _key_in_clear(recipe: Recipe) -> Refusal:
    for model in recipe.scored_models:
        server = recipe.scorer_of(model).server
        if server and server.token_file and urlsplit(server.address).scheme == "http":
            host = urlsplit(server.address).hostname
            if host not in ("localhost", "127.0.0.1", "::1"):
                return f"scorer.{model}.server.address: its key goes to {host} in clear; use https"
    return None


WARNED: tuple[Rule, ...] = (
    _forward_on_the_students_support,
    _reverse_on_a_renormalised_support,
    _dropped_tail,
    _clipped_forward,
    _clipped_extrapolation,
    _divided_beta,
    _scorer_turns_without_a_gpu,
    _turns_without_a_gpu,
    _arguments_that_one_template_lacks,
    _key_in_clear,
)
