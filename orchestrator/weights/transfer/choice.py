"""The carrier that a recipe names."""

from __future__ import annotations

from collections.abc import Callable

from configs.names.own_code import imported, is_own
from configs.schema import Recipe
from orchestrator.weights.carriers import Carrier, ObjectStore
from orchestrator.weights.transfer.nccl import Broadcast
from orchestrator.weights.transfer.shared import Shared
from orchestrator.weights.transfer.to_rollouts import ToRollouts


def carrier_of(recipe: Recipe) -> Carrier:
    """What `rollout.carrier` names: one of CARRIERS, or a class of the user's own, which is made without arguments."""
    name = recipe.rollout.carrier
    return imported(name)() if is_own(name) else CARRIERS[name](recipe)


def _shared(recipe: Recipe) -> Carrier:
    return ToRollouts(Shared(), stored=recipe.stores_versions)


def _broadcast(recipe: Recipe) -> Carrier:
    direct = Broadcast(recipe.deadlines.transfer, recipe.rollout.tensor_parallel)
    return ToRollouts(direct, stored=recipe.stores_versions)


CARRIERS: dict[str, Callable[[Recipe], Carrier]] = {
    "object_store": lambda recipe: ObjectStore(),
    "ipc": _shared,
    "nccl": _broadcast,
}
