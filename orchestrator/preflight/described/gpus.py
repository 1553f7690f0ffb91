"""GPU memory of the roles on each GPU of a described cluster: lower bounds, without activations.

A vLLM engine holds `gpu_memory_fraction` of its GPU, which must have room for weights and the KV cache of one response.
Under `colocate` the learner has the GPU in its turn, and the engines in theirs. Of scorers that take turns one is there
at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from configs.node import STUDENT
from configs.roles.rollout import Rollout
from configs.roles.scorer import Scorer
from configs.schema import Recipe
from orchestrator.placement.packing import Bundle, Placed
from orchestrator.preflight import estimates
from orchestrator.preflight.comparison import Comparison, compared, notable, size
from orchestrator.preflight.estimates import Size
from orchestrator.preflight.survey import Machine


def compare_gpus(
    recipe: Recipe, sizes: Mapping[str, Size], machines: Sequence[Machine], placed: Placed
) -> list[Comparison]:
    """Each vLLM engine with its share of a GPU, and each GPU with all that lies on it; those that are short, else the
    fullest."""
    shares: dict[str, list[Comparison]] = {}
    whole: list[Comparison] = []
    for machine in machines:
        memory = (machine.free and machine.free.gpu_memory) or 0
        for gpu, bundles in placed.on_gpus(machine.node.name).items():
            where = f"GPU {gpu} of {machine.node.name}"
            for role in {bundle.name for bundle in bundles}:
                shares.setdefault(role, []).extend(_share(recipe, sizes, role, memory, where))
            whole += [_whole(recipe, sizes, turn, memory, where) for turn in _turns(recipe, bundles)]
    kinds = [*shares.values(), *([one for one in whole if one.key == key] for key in sorted({o.key for o in whole}))]
    return [one for kind in kinds for one in notable(kind)[:1]]


def _turns(recipe: Recipe, bundles: Sequence[Bundle]) -> Iterator[list[str]]:
    """Roles that are on a GPU at the same time."""
    roles = [bundle.name for bundle in bundles]
    if not recipe.colocate:
        for chosen in product(*recipe.scorers_in_turns.values()):
            asleep = {f"scorer.{m}" for models in recipe.scorers_in_turns.values() for m in models if m not in chosen}
            if awake := [role for role in roles if role not in asleep]:
                yield awake
        return
    yield from (turn for turn in ([r for r in roles if r == "learner"], [r for r in roles if r != "learner"]) if turn)


def _share(recipe: Recipe, sizes: Mapping[str, Size], role: str, memory: int, where: str) -> Iterator[Comparison]:
    """A vLLM engine's weights, and the KV cache of one response, in its part of a GPU."""
    model, engine = estimates.engines(recipe).get(role, (STUDENT, None))
    if engine is None or engine.engine != "vllm":
        return
    weights = _weights(sizes[model], engine)
    per_token = (sizes[model].key_values or 0) // engine.tensor_parallel
    cache = estimates.key_value_bytes(per_token, engine.max_context_tokens, engine.dtype)
    room = int(engine.gpu_memory_fraction * memory)
    asked = (
        f"weights of {size(weights)} and the KV cache of one response, {size(cache)}, take {size(weights + cache)} of "
        f"{where}"
    )
    there = f"its part ({engine.gpu_memory_fraction:g}) has {size(room)}"
    remedy = "raise it, tensor_parallel with resources.gpus, or use GPUs with more memory"
    yield compared(f"{role}.gpu_memory_fraction", asked, weights + cache, there, room, remedy)


def _whole(recipe: Recipe, sizes: Mapping[str, Size], roles: Sequence[str], memory: int, where: str) -> Comparison:
    """All roles that are on a GPU at a time."""
    parts = {role: roles.count(role) * _bytes(recipe, sizes, role, memory) for role in dict.fromkeys(roles)}
    need, largest = sum(parts.values()), max(parts, key=lambda role: parts[role])
    each = ", ".join(f"{role} {size(amount)}" for role, amount in parts.items())
    asked = f"{where} holds at least {size(need)} ({each})"
    lower = "raise learner.zero_stage or learner.ranks, or set learner.offload_optimizer: cpu"
    remedy = lower if largest == "learner" else f"lower {largest}.gpu_memory_fraction, or give it GPUs of its own"
    return compared(f"{largest}.resources.gpus", asked, need, f"it has {size(memory)}", memory, remedy)


def _bytes(recipe: Recipe, sizes: Mapping[str, Size], role: str, memory: int) -> int:
    """What a role takes of a GPU; 0 if unknown."""
    if role == "learner":
        deepspeed = recipe.learner.engine == "deepspeed"
        copy = estimates.copy_bytes(recipe, sizes[STUDENT]) if recipe.learner.ranks == 1 else 0  # others have none
        return copy + estimates.gpu_rank_bytes(sizes[STUDENT], recipe.learner) if deepspeed else 0
    model, engine = estimates.engines(recipe).get(role, (STUDENT, None))
    if engine is None:
        return 0
    return int(engine.gpu_memory_fraction * memory) if engine.engine == "vllm" else _weights(sizes[model], engine)


def _weights(of: Size, engine: Rollout | Scorer) -> int:
    """Bytes of an engine's weights on one of its GPUs."""
    return of.parameters * estimates.WIDTH[engine.dtype] // engine.tensor_parallel
