"""Before any actor starts: do a model's files hold the weights that config.json asks for, and can the student's be
written again? Reads headers and builds models without storage; no weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.models.model_files import config_of
from configs.load import RecipeError
from configs.node import STUDENT
from configs.schema import Recipe
from orchestrator.preflight.adapters import check_adapters

if TYPE_CHECKING:
    from actors.models.stored import Stored


def check_models(recipe: Recipe, folders: Mapping[Any, Path]) -> None:
    """Check the models that transformers loads: the student, and those of torch scorers. `folders` by place (model,
    swap). Raises RecipeError."""
    loaded = set(_loaded(recipe))
    found: dict[Path, Stored] = {}
    for place, folder in folders.items():
        if place[0] not in loaded:
            continue
        stored = found[folder] = found.get(folder) or _stored(str(place), folder)
        if stored.unreadable:
            raise RecipeError(f"{place}: {folder}: {stored.unreadable[0]}; copy or export the model again")
        if place[0] == STUDENT:
            _check_student(str(place), folder, stored)
            check_adapters(recipe, folder)


def _loaded(recipe: Recipe) -> Iterator[str]:
    if recipe.learner.engine == "deepspeed":
        yield STUDENT
    for name in recipe.scored_models:
        if recipe.scorer_of(name).engine == "torch":
            yield name


def _check_student(place: str, folder: Path, stored: Stored) -> None:
    """Check that versions can be published: plain weights, under the names of the files. Raises RecipeError."""
    if method := _quantisation(config_of(folder)):
        raise RecipeError(
            f"{place}: the weights of {folder} are quantised ({method}), and what is trained is not; give the model in "
            "bfloat16"
        )
    if stored.unwritable:
        raise RecipeError(
            f"{place}: {folder}: {stored.unwritable[0]}, so no weights could be published; load the model with "
            "transformers and save it with save_pretrained"
        )


def _stored(place: str, folder: Path) -> Stored:
    from actors.models.model_faults import quiet_transformers
    from actors.models.stored import read_stored

    try:
        with quiet_transformers():
            return read_stored(folder)
    except Exception as error:  # a model's code may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise RecipeError(
            f"{place}: transformers builds no causal language model from {folder}/config.json "
            f"({type(error).__name__}: {reason[:200]}); give another model"
        ) from None


def _quantisation(config: Mapping[str, Any]) -> str | None:
    """The method by which the weights are quantised; None if they are not."""
    found = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    return None if not found else str(found.get("quant_method", "in an unknown way"))
