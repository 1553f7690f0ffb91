"""Held-out sets before a run: do they fit, and is there a metric by which a checkpoint may be the best?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from actors.metrics import EVALUATION_METRICS, OF_TEXT, set_metrics
from configs.evaluation import HELDOUT, MOST_PROMPTS
from configs.node import STUDENT
from configs.refusal import RecipeError, shown
from configs.schema import Recipe
from orchestrator.data.prompting import Prompting
from orchestrator.data.sets import read_sets
from orchestrator.samples.prompts import Prompt
from orchestrator.samples.templates import Demonstrations

Sets = Mapping[str, Sequence[Prompt]]


@dataclass(frozen=True)
class Found:
    """The prompts of each set, and warnings."""

    prompts: Sets
    warnings: tuple[str, ...]


def read(
    recipe: Recipe, prompting_of: Callable[[Recipe], Prompting], ends: Demonstrations, positions: int | None
) -> Found:
    """Open and check every set. `prompting_of`: what makes prompts of a set's rows, by the set's recipe; `ends` writes
    the responses of texts, which fit into the student's `positions`. Raises RecipeError."""
    check_best(recipe)
    check_formats(recipe)
    prompts: dict[str, Sequence[Prompt]] = {}
    warnings: list[str] = []
    for name, one in recipe.evaluate.sets.items():
        of_set = recipe.of_set(name)
        entry, prompting = of_set.data.heldout_set, prompting_of(of_set)
        assert entry is not None, "a set has prompts or text"
        if one.text is not None:
            student = {STUDENT: prompting.chats[STUDENT]}
            prompting = replace(prompting, chats=student, limits=(), route=None, demonstrations=ends)
        found = read_sets([entry], prompting, of_set.reward.rules if one.text is None else (), drops=False)
        prompts[name] = list(found.sets[0])
        warnings += found.warnings
        if one.text is not None:
            fit_texts(name, prompts[name], positions)
    check_room(prompts)
    return Found(prompts, tuple(warnings))


def check_best(recipe: Recipe) -> None:
    """Raise RecipeError if checkpoint.best names no number that is measured while the run trains."""
    best = recipe.checkpoint.best
    if best is None:
        return
    known = measured(recipe)
    if best.of_set not in known:
        raise RecipeError(
            f"checkpoint.best.metric: {shown(best.metric)} names no held-out set; allowed: {sorted(known)}, each with "
            "the name of a metric behind a dot"
        )
    if best.name not in known[best.of_set]:
        raise RecipeError(
            f"checkpoint.best.metric: {shown(best.name)} is not measured on {best.of_set}; allowed: "
            f"{list(known[best.of_set])}"
        )
    if not recipe.evaluate.every_of(best.of_set):
        raise RecipeError(
            f"checkpoint.best: {best.of_set} is measured before the first step and after the last alone, so the last "
            "would be the best; set evaluate.every"
        )


def check_formats(recipe: Recipe) -> None:
    """Raise RecipeError for a set whose format names no component of its reward."""
    for name, one in recipe.evaluate.sets.items():
        known = recipe.of_set(name).reward.components
        if one.format is not None and one.format not in known:
            raise RecipeError(
                f"evaluate.sets.{name}.format: {shown(one.format)} names no component of its reward; allowed: "
                f"{list(known)}"
            )


def measured(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """The numbers that are measured on each held-out set of a recipe."""
    found = {HELDOUT: tuple(n for n in EVALUATION_METRICS if n != "kl_support")} if recipe.data.heldout else {}
    for name, one in recipe.evaluate.sets.items():
        found[name] = OF_TEXT if one.text else set_metrics(one.k, one.samples_per_prompt, one.format is not None)
    return found


def check_room(sets: Sets) -> None:
    """Raise RecipeError for more prompts than a set has numbers for."""
    for name, prompts in sets.items():
        if len(prompts) > MOST_PROMPTS:
            raise RecipeError(
                f"evaluate.sets.{name}: {len(prompts)} rows are more than a set's {MOST_PROMPTS}; take a part of them"
            )


def check_heldout(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Raise RecipeError for more prompts in data.heldout than there are numbers before those of the sets."""
    if recipe.evaluate.sets and len(prompts) > MOST_PROMPTS:
        raise RecipeError(
            f"data.heldout: {len(prompts)} rows are more than the {MOST_PROMPTS} that may stand beside evaluate.sets; "
            "take a part of them"
        )


def fit_texts(name: str, texts: Sequence[Prompt], positions: int | None) -> None:
    """Raise RecipeError for a text longer than the student's positions; None: it has no limit."""
    longest = max(texts, key=_tokens)
    if positions is not None and _tokens(longest) > positions:
        raise RecipeError(
            f"evaluate.sets.{name}.text: line {longest.line} has {_tokens(longest)} tokens, the student has "
            f"{positions} positions; shorten it"
        )


def responses(recipe: Recipe, sets: Sets) -> int:
    """Responses of one evaluation of all sets of prompts, counted in responses of the run's cap."""
    caps = {name: recipe.of_set(name).sampling.max_response_tokens for name in recipe.evaluate.answered}
    tokens = sum(len(sets[name]) * recipe.evaluate.sets[name].samples_per_prompt * cap for name, cap in caps.items())
    return math.ceil(tokens / recipe.sampling.max_response_tokens)


def _tokens(prompt: Prompt) -> int:
    return len(prompt.ids[STUDENT]) + len(prompt.response_ids or ())
