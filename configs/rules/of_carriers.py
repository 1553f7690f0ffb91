"""Combinations with carriers that move weights from GPU to GPU."""

from __future__ import annotations

from typing import Any

from configs.names.own_code import is_own
from configs.rules.of_kinds import of_each_kind
from configs.rules.rule import Refusal, Rule
from configs.schema import Recipe

STORE = "object_store"


def _needless_carriers(recipe: Recipe) -> Refusal:
    if recipe.teacher_rollout.carrier != STORE:
        return f"teacher_rollout.carrier: {recipe.teacher_rollout.carrier!r}: a teacher pulls no weights; remove it"
    if not recipe.rollout.direct:
        return None
    if "rollout" not in recipe.roles:
        return f"rollout.carrier: {recipe.rollout.carrier!r}: no rollout runs, the student samples nothing; remove it"
    if recipe.learner.lora:
        return (
            f"rollout.carrier: {recipe.rollout.carrier!r} moves all weights, and versions of learner.lora are "
            f"adapters of a few MiB; set it to {STORE}"
        )
    return None


def _carriers_without_gpus(recipe: Recipe) -> Refusal:
    for role, config in _ends(recipe):
        if not config.resources.gpus:
            return (
                f"rollout.carrier: {recipe.rollout.carrier!r} moves weights between GPUs, found "
                f"{role}.resources.gpus: 0; give {role} GPUs, or set rollout.carrier: {STORE}"
            )
    return None


def _groups_on_shared_gpus(recipe: Recipe) -> Refusal:
    if recipe.rollout.carrier != "nccl":
        return None
    if recipe.colocate:
        return (
            "rollout.carrier: 'nccl' needs the learner and its members at once, and under colocate one of them sleeps; "
            f"use ipc on one node, or {STORE}"
        )
    for role, config in _ends(recipe):
        if config.resources.gpus < 1:
            return (
                f"rollout.carrier: 'nccl' refuses two processes on one GPU, found {role}.resources.gpus: "
                f"{config.resources.gpus:g}; give {role} whole GPUs, or use ipc on one node"
            )
    return None


def _copies_on_several_nodes(recipe: Recipe) -> Refusal:
    if recipe.rollout.carrier != "ipc":
        return None
    learner = recipe.learner.resources
    rollouts = {name: part for name, part in recipe.parts.items() if name.partition(".")[0] == "rollout"}
    actors = {name: part.members for name, part in rollouts.items()} | {"learner": recipe.learner.ranks}
    for role, count in actors.items():
        placement = recipe.parts[role].resources.placement
        if (count > 1 or len(rollouts) > 1) and placement in ("spread", "strict_spread"):
            return (
                f"rollout.carrier: 'ipc' needs one node, found {role}.resources.placement: {placement}; use pack, or "
                "nccl"
            )
    for role, label, one in ((r, label, one) for r, p in rollouts.items() for label, one in p.resources.labels.items()):
        other = learner.labels.get(label, one)
        if one != other and not any(_is_condition(value) for value in (one, other)):
            return (
                f"rollout.carrier: 'ipc' needs one node, found resources.labels {label}: {one} of {role} and {other} "
                "of learner; give both the same, or use nccl"
            )
    return None


def _is_condition(label: str) -> bool:
    """Whether a label of Ray's names no one value, as `!b` and `in(a, b)`."""
    return label.startswith("!") or "(" in label


def _ends(recipe: Recipe) -> list[tuple[str, Any]]:
    """The roles between which weights move, if they move from GPU to GPU and the engines are not of a user's own."""
    ends = [*of_each_kind({"rollout": recipe.rollout}), ("learner", recipe.learner)]
    return [(name, config) for name, config in ends if recipe.rollout.direct and not is_own(config.engine)]


OF_CARRIERS: tuple[Rule, ...] = (
    _needless_carriers,
    _carriers_without_gpus,
    _groups_on_shared_gpus,
    _copies_on_several_nodes,
)
