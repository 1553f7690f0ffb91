"""How much memory of a GPU a role's actor may count on."""

from __future__ import annotations

from collections.abc import Sequence

from configs.schema import Recipe
from orchestrator.placement.packing import Bundle
from orchestrator.preflight import estimates
from orchestrator.preflight.survey import Machine


def gpus_of(recipe: Recipe, machines: Sequence[Machine]) -> dict[str, int]:
    """Bytes of one GPU of each role, or kind of its members, with GPUs: the smallest on the nodes that could hold its
    actors. Without roles of which a node does not say it."""
    found = {role: _smallest(recipe, role, machines) for role in roles_with_gpus(recipe)}
    return {role: memory for role, memory in found.items() if memory is not None}


def roles_with_gpus(recipe: Recipe) -> list[str]:
    return [name for name, taken in recipe.parts.items() if taken.resources.gpus]


def part(recipe: Recipe, role: str, gpu: int) -> int:
    """Bytes of a GPU for a torch role: its share by `resources.gpus`, and those of scorers that sleep in its turn.
    Under `colocate` the learner has all of it in its turn, and torch scorers have what vLLM engines leave in theirs."""
    if not recipe.colocate:
        groups = ({f"scorer.{model}" for model in models} for models in recipe.scorers_in_turns.values())
        asleep = next((group - {role} for group in groups if role in group), set())
        shares = [recipe.parts[role], *(recipe.roles[one] for one in asleep)]
        return int(min(1.0, sum(share.resources.gpus for share in shares)) * gpu)
    if role == "learner":
        return gpu
    engines = {name: engine for name, (_, engine) in estimates.engines(recipe).items() if name in recipe.roles}
    held = sum(engine.gpu_memory_fraction for engine in engines.values() if engine.engine == "vllm")
    others = sum(engine.engine != "vllm" for engine in engines.values())
    return int(max(0.0, 1.0 - held) / max(1, others) * gpu)


def _smallest(recipe: Recipe, role: str, machines: Sequence[Machine]) -> int | None:
    taken = recipe.parts[role].resources
    bundle = Bundle(role, taken.cpus, taken.gpus, taken.labels, taken.custom)
    found = [machine.free and machine.free.gpu_memory for machine in machines if machine.node.holds(bundle)]
    known = [memory for memory in found if memory is not None]
    return min(known) if known and len(known) == len(found) else None
