"""Adapters before any actor starts: which layers they adapt, how large they are, and what one GPU then holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from configs.load import RecipeError
from configs.node import STUDENT
from configs.schema import Recipe
from orchestrator.preflight import estimates
from orchestrator.preflight.comparison import GIB, size
from orchestrator.preflight.estimates import Size

CARDS = (24, 48, 80)  # GiB of common GPUs


def adapted(recipe: Recipe, student: Size, folder: Path) -> Size:
    """The student's size with its adapters, if it has any. `folder` may hold no weights. Raises RecipeError."""
    lora = recipe.learner.lora
    if lora is None or recipe.learner.engine != "deepspeed":
        return student
    from actors.lora.sites import Unfit, read_sites

    try:
        sites = read_sites(folder, lora.targets)
    except Unfit as reason:
        raise RecipeError(f"learner.lora.targets: {folder}: {reason}") from None
    adapters = sum(site.parameters(lora.rank) for site in sites)
    return replace(student, adapters=adapters, adapted=sum(prod(site.shape) for site in sites))


def check_adapters(recipe: Recipe, folder: Path) -> None:
    """Refuse targets that name nothing, or whose adapters would do nothing. Raises RecipeError."""
    lora = recipe.learner.lora
    if lora is None or recipe.learner.engine != "deepspeed":
        return
    from actors.lora.sites import Unfit, check_reach
    from actors.models.model_faults import quiet_transformers

    try:
        with quiet_transformers():
            adapted(recipe, Size(0, 0, None), folder)
            check_reach(folder, lora)
    except Unfit as reason:
        raise RecipeError(f"learner.lora.targets: {folder}: {reason}") from None


def describe_adapters(recipe: Recipe, sizes: Mapping[str, Size]) -> list[str]:
    """Lines of `logratio check`: the adapters, and which roles one GPU of each common size holds; none without
    adapters."""
    student, lora = sizes[STUDENT], recipe.learner.lora
    if lora is None or student.adapters is None:
        return []
    served = "merged into the weights" if lora.merges(recipe.rollout.resources.gpus) else "by vLLM's LoRA layers"
    first = (
        f"learner.lora: {student.adapters / 1e6:.2f} M of {student.parameters / 1e6:.0f} M parameters are trained; a "
        f"version takes {size(student.adapters * estimates.WIDTH[recipe.learner.dtype])}; rollouts use it {served}"
    )
    return [first, *_cards(recipe, sizes)]


def _cards(recipe: Recipe, sizes: Mapping[str, Size]) -> Iterator[str]:
    """A line for each size of GPU: roles that fit alone, together, and in turns. Lower bounds, one rank or member of
    each role, without activations."""
    needs = card_bytes(recipe, sizes)
    parts = ", ".join(f"{role} {size(amount)}" for role, amount in needs.items())
    engines = sum(amount for role, amount in needs.items() if role != "learner")
    yield f"one GPU would hold, without activations: {parts}"
    for gib in CARDS:
        alone = [role for role, amount in needs.items() if amount <= gib * GIB]
        together = "fit" if sum(needs.values()) <= gib * GIB else "do not fit"
        turns = "fit" if max(needs["learner"], engines) <= gib * GIB else "do not fit"
        fits = ", ".join(alone) or "none"
        yield f"  {gib} GiB: by itself {fits}; all together {together}; in turns (colocate) they {turns}"


def card_bytes(recipe: Recipe, sizes: Mapping[str, Size]) -> dict[str, int]:
    """The least GPU memory of each role's actor, bytes: a rank of the learner on a GPU; of an engine its weights, a
    rollout's adapter, and with vLLM the KV cache of one response."""
    gpu = recipe.learner.resources.model_copy(update={"gpus": 1.0})
    found = {"learner": estimates.gpu_rank_bytes(sizes[STUDENT], recipe.learner.model_copy(update={"resources": gpu}))}
    for role, (model, engine) in estimates.engines(recipe).items():
        if role in recipe.roles:
            width = estimates.WIDTH[engine.dtype]
            cache = (sizes[model].key_values or 0) * engine.max_context_tokens * (engine.engine == "vllm")
            adapter = (sizes[model].adapters or 0) if role == "rollout" else 0
            found[role] = (sizes[model].parameters + adapter + cache) * width // engine.tensor_parallel
    return found
