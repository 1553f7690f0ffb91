"""The ids that end a response: the same for all models, or as a class the union of student and target."""

from __future__ import annotations

from collections.abc import Mapping

from configs.load import RecipeError
from configs.node import STUDENT
from configs.places import Place
from configs.rules import VLLM_MAX_TOPK
from configs.schema import Recipe


def common_ends(recipe: Recipe, ends: Mapping[Place, frozenset[int]], vocabulary: int) -> tuple[int, ...]:
    """The end tokens of a run, ascending. `ends`: those of every served model. Raises RecipeError."""
    if recipe.objective.end_tokens == "same":
        return _same(ends)
    joined = {STUDENT, *recipe.objective.target_models, *([recipe.sampled_teacher] if recipe.sampled_teacher else [])}
    union = frozenset(i for place, ids in ends.items() if place.model in joined for i in ids)
    for place, ids in ends.items():
        if beyond := sorted(i for i in ids & union if i >= vocabulary):
            raise RecipeError(
                f"{place}: its end tokens {beyond} are beyond the common vocabulary of {vocabulary}; with "
                "objective.end_tokens: class every model has all of them; use models of one width"
            )
        if alien := sorted(ids - union):
            raise RecipeError(
                f"{place}: it ends at {alien}, where neither the student nor a target does ({sorted(union)}); use a "
                "model that ends as they do"
            )
    if recipe.objective.topk_of != "teacher" and recipe.objective.topk + len(union) > VLLM_MAX_TOPK:
        raise RecipeError(
            f"objective.topk: {recipe.objective.topk} beside {len(union)} end tokens exceed the {VLLM_MAX_TOPK} that "
            f"the rollout engine returns; lower it to {VLLM_MAX_TOPK - len(union)}"
        )
    return tuple(sorted(union))


def _same(ends: Mapping[Place, frozenset[int]]) -> tuple[int, ...]:
    (student,) = (ids for place, ids in ends.items() if place.model == STUDENT and not place.swap)
    for place, ids in ends.items():
        if ids != student:
            raise RecipeError(
                f"{place}: end tokens {sorted(ids)} differ from the student's {sorted(student)}; a student scored by a "
                "teacher that ends elsewhere learns never to end; set objective.end_tokens: class, or use models that "
                "end alike"
            )
    return tuple(sorted(student))
