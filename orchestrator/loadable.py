"""Before any actor starts: do the files of a model make what config.json says, and can the student's be written as they
are? From headers and models without storage; no weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.model_files import config_of
from configs.load import RecipeError
from configs.node import STUDENT
from configs.schema import Recipe

if TYPE_CHECKING:
    from actors.stored import Stored


def check_models(recipe: Recipe, folders: Mapping[Any, Path]) -> None:
    """`folders` by place, which begins with the model's name. Raises RecipeError for what transformers would load: the
    student, and models scored by the torch engine."""
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


def _loaded(recipe: Recipe) -> Iterator[str]:
    if recipe.learner.engine == "deepspeed":
        yield STUDENT
    for name in recipe.scored_models:
        if recipe.scorer_of(name).engine == "torch":
            yield name


def _check_student(place: str, folder: Path, stored: Stored) -> None:
    """A version holds weights as they are trained, under the names of the files; engines read nothing else."""
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
    from actors.stored import read_stored
    from actors.unsaid import unsaid

    try:
        with unsaid():
            return read_stored(folder)
    except Exception as error:  # whatever a model's code makes of a configuration
        said = (str(error).splitlines() or [""])[0]
        raise RecipeError(
            f"{place}: transformers builds no causal language model from {folder}/config.json "
            f"({type(error).__name__}: {said[:200]}); give another model"
        ) from None


def _quantisation(config: Mapping[str, Any]) -> str | None:
    """How the weights are quantised, None where they are not."""
    found = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    return None if not found else str(found.get("quant_method", "in an unknown way"))
