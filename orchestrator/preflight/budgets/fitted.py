"""Puts numbers in the place of `auto`, key by key, and says how each came about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.node import STUDENT, UNSIZED
from configs.roles.rollout import Rollout
from configs.roles.scorer import Scorer
from configs.roles.sizes import name_of
from configs.schema import Batch, Recipe
from orchestrator.preflight import estimates
from orchestrator.preflight.budgets.concurrency import responses
from orchestrator.preflight.budgets.gpus import gpus_of, part, roles_with_gpus
from orchestrator.preflight.budgets.room import Room
from orchestrator.preflight.budgets.tokens import learned, scored
from orchestrator.preflight.comparison import GIB
from orchestrator.preflight.estimates import Extent, Size
from orchestrator.preflight.survey import Machine

COMMON = (24, 48, 80, 141)  # GiB of common GPUs
BLIND = {"max_concurrent": 256, "tokens_per_batch": 16_384, "tokens_per_microbatch": 8192}  # where memory is unknown
ON_CPU = {
    "max_concurrent": Rollout.model_fields["max_concurrent"].default,
    "tokens_per_batch": Scorer.model_fields["tokens_per_batch"].default,
    "tokens_per_microbatch": Batch.model_fields["tokens_per_microbatch"].default,
}
Key = tuple[str, ...]  # from the recipe's root


@dataclass(frozen=True)
class Known:
    """What the numbers follow from. `gpus`: bytes of one GPU, by role; without roles where they are unknown."""

    extent: Extent
    sizes: Mapping[str, Size]
    gpus: Mapping[str, int]


def fitted(recipe: Recipe, known: Known) -> tuple[Recipe, list[str]]:
    """The recipe with a number for every `auto`, and a line for each role with GPUs that runs."""
    whole, lines = recipe, []
    for key, role in unsized(recipe):
        number, why = _number(recipe, key[-1], role, known)
        whole = _put(whole, key, number)
        if role in roles_with_gpus(recipe):
            lines.append(f"{'.'.join(key)}: {number}: {why}")
    return whole, lines


def fitted_to(
    recipe: Recipe, extent: Extent, sizes: Mapping[str, Size], machines: Sequence[Machine]
) -> tuple[Recipe, list[str]]:
    """The same, on these machines."""
    return fitted(recipe, Known(extent, sizes, gpus_of(recipe, machines)))


def by_gpu(recipe: Recipe, extent: Extent, sizes: Mapping[str, Size]) -> list[str]:
    """A line for each `auto` of a role with GPUs: the number on each of the common GPUs."""
    running, lines = roles_with_gpus(recipe), []
    for key, role in unsized(recipe):
        if role in running:
            cards = {gib: Known(extent, sizes, dict.fromkeys(running, gib * GIB)) for gib in COMMON}
            numbers = [f"{_number(recipe, key[-1], role, known)[0]} on {gib} GiB" for gib, known in cards.items()]
            lines.append(f"{'.'.join(key)} follows from the GPU's memory: {', '.join(numbers)}")
    return lines


def unsized(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """The keys that are `auto`, and the role, or the kind of its members, of each."""
    for role, engine in (("rollout", recipe.rollout), ("teacher_rollout", recipe.teacher_rollout)):
        for kind in ("", *engine.kinds):
            if engine.of_kind(kind).max_concurrent == UNSIZED:
                yield (role, *_below(kind), "max_concurrent"), name_of(role, kind)
    for model, scorer in recipe.scorer.items():
        for kind in ("", *scorer.kinds):
            if scorer.of_kind(kind).tokens_per_batch == UNSIZED:
                yield ("scorer", model, *_below(kind), "tokens_per_batch"), name_of(f"scorer.{model}", kind)
    if recipe.batch.tokens_per_microbatch == UNSIZED:
        yield ("batch", "tokens_per_microbatch"), "learner"


def _below(kind: str) -> Key:
    return ("kinds", kind) if kind else ()


def _number(recipe: Recipe, name: str, role: str, known: Known) -> tuple[int, str]:
    """The number of a role's key, and how it comes about."""
    if role not in roles_with_gpus(recipe):
        return ON_CPU[name], "no GPUs"
    if role not in known.gpus:
        return BLIND[name], "the memory of its GPUs is not known"
    room = _room(recipe, role, known)
    if room is None:
        return BLIND[name], "what a token takes of the GPU is not known"
    return room.count, room.words


def _room(recipe: Recipe, role: str, known: Known) -> Room | None:
    """None where the engine or the model says too little."""
    gpu, width = known.gpus[role], known.extent.vocabulary
    if role == "learner":
        return _of_learner(recipe, known, part(recipe, role, gpu)) if recipe.learner.engine == "deepspeed" else None
    model, engine = estimates.engines(recipe).get(role, (STUDENT, None))
    if isinstance(engine, Rollout) and engine.engine == "vllm":
        return responses(known.sizes[model], engine, gpu, _longest(recipe, role, known.extent), width)
    if isinstance(engine, Scorer) and engine.engine in ("torch", "vllm"):
        has = gpu if engine.engine == "vllm" else part(recipe, role, gpu)
        return scored(known.sizes[model], engine, has, width, cached=recipe.stream_tokens > 0)
    return None


def _of_learner(recipe: Recipe, known: Known, gpu: int) -> Room | None:
    supports, student = recipe.support_of, known.sizes[STUDENT]
    whole = [model for model, support in supports.items() if support == "full"]
    widths = [known.sizes.get(model, student).hidden for model in whole]
    widest = next((kind for kind in ("full", "topk") if kind in supports.values()), "sampled")
    vocabulary, read = known.extent.vocabulary, [model for model in whole if model in recipe.scored_models]
    beside = {
        "of LM heads": sum(estimates.head_bytes(recipe, known.sizes, model, vocabulary) for model in read),
        "of the copy for rollouts": estimates.copy_bytes(recipe, student),
    }
    return learned(student, recipe.learner, gpu, vocabulary, widest, widths, beside)


def _longest(recipe: Recipe, role: str, extent: Extent) -> int:
    """Tokens of the longest response with its prompt; of a teacher's prompts nothing is known but the bound."""
    if role.startswith("teacher_rollout"):
        return recipe.teacher_rollout.max_context_tokens
    return min(recipe.rollout.max_context_tokens, extent.longest_prompt + recipe.sampling.max_response_tokens)


def _put(node: Any, key: Key, number: int) -> Any:
    """A node, or a mapping of nodes, with a number at a key below it."""
    first, *rest = key
    if isinstance(node, Mapping):
        return {**node, first: _put(node[first], tuple(rest), number)}
    inner = _put(getattr(node, first), tuple(rest), number) if rest else number
    return node.model_copy(update={first: inner})
