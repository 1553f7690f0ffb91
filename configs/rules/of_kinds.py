"""Kinds of a role's members that say nothing, or that the rest of the recipe has no room for; a part of MEANINGLESS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs.roles.rollout import Rollout
from configs.roles.scorer import Scorer
from configs.roles.sizes import name_of
from configs.rules.rule import Refusal, Rule
from configs.schema import Recipe


def of_each_kind(engines: Mapping[str, Rollout | Scorer]) -> Iterator[tuple[str, Rollout | Scorer]]:
    """The keys of the members of each kind, the roles' own first, with their place in the recipe."""
    for role, engine in engines.items():
        for kind in ("", *engine.kinds):
            yield name_of(role, kind), engine.of_kind(kind)


def _with_kinds(recipe: Recipe) -> dict[str, Rollout | Scorer]:
    scorers = {f"scorer.{model}": recipe.scorer_of(model) for model in recipe.scored_models}
    engines = {"rollout": recipe.rollout, "teacher_rollout": recipe.teacher_rollout, **scorers}
    return {role: engine for role, engine in engines.items() if engine.kinds}


def _equal_kinds(recipe: Recipe) -> Refusal:
    for role, engine in _with_kinds(recipe).items():
        seen: list[tuple[str, Rollout | Scorer]] = []
        for name, keys in of_each_kind({role: engine}):
            alike = keys.model_copy(update={"members": 1})
            if other := next((earlier for earlier, theirs in seen if theirs == alike), None):
                return f"{name}: differs in nothing from the members of {other}; raise {other}.members, or remove it"
            seen.append((name, alike))
    return None


def _kinds_without_gpus(recipe: Recipe) -> Refusal:
    for role, engine in _with_kinds(recipe).items():
        own = engine.resources.gpus
        for name, keys in of_each_kind({role: engine}):
            if bool(own) != bool(keys.resources.gpus):
                return (
                    f"{name}.resources.gpus: {keys.resources.gpus:g} beside {role}.resources.gpus: {own:g}: all "
                    "members of a role have one dtype, and CPUs and GPUs need different ones; give GPUs to both or none"
                )
    return None


def _kinds_in_turns(recipe: Recipe) -> Refusal:
    for role, engine in _with_kinds(recipe).items():
        if recipe.colocate:
            return f"{role}.kinds: under colocate all roles share the same GPUs; remove it, or colocate"
        if isinstance(engine, Scorer) and engine.turns:
            return f"{role}.kinds: scorers that take turns share the same GPUs; remove it, or {role}.turns"
    return None


def _kinds_of_servers(recipe: Recipe) -> Refusal:
    for role, engine in _with_kinds(recipe).items():
        if engine.engine == "server":
            return f"{role}.kinds: the server computes, its members are all alike; remove it"
    return None


def _kinds_in_groups(recipe: Recipe) -> Refusal:
    for name, keys in of_each_kind({"rollout": recipe.rollout}) if recipe.rollout.carrier == "nccl" else ():
        if keys.tensor_parallel != recipe.rollout.tensor_parallel:
            return (
                f"{name}.tensor_parallel: {keys.tensor_parallel} beside rollout.tensor_parallel: "
                f"{recipe.rollout.tensor_parallel}: with rollout.carrier: 'nccl' every member has as many ranks; set "
                "both to the same, or use object_store"
            )
    return None


OF_KINDS: tuple[Rule, ...] = (
    _equal_kinds,
    _kinds_without_gpus,
    _kinds_in_turns,
    _kinds_of_servers,
    _kinds_in_groups,
)
