"""The model card of an export: README.md, made of what the run's files say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.load import BUNDLED
from configs.schema import Recipe
from orchestrator.surface.export.lineage import Base

TEMPLATE = Path(__file__).parent / "card.md.j2"
Evaluations = Mapping[str, Any]


def model_card(title: str, runs: Sequence[tuple[str, Recipe]], base: Base, which: str, found: Evaluations) -> str:
    """The text of a card. `runs`: name and recipe of each run that led to the model, the first one first; `which`: the
    weights of its last run; `found`: `evaluation` of that run's summary, whose `after` is of these weights."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=base.name,
        license=base.licence or "unknown",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["logratio"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        base=base,
        runs=[_described(name, recipe) for name, recipe in runs],
        which=which,
        measured=list(measured(found)),
    )
    return str(card)


def measured(found: Evaluations) -> Iterator[tuple[str, float, float]]:
    """(name, before, after) of the numbers that were measured both times, those of named held-out sets too."""
    yield from _pairs("", found)
    for name, of_set in (found.get("sets") or {}).items():
        yield from _pairs(f"{name}: ", of_set)


def at_step(found: Evaluations, step: int) -> Evaluations:
    """A run's evaluations, with the one on the way at `step` in place of the last; None where there was none."""
    after = next((line for line in found.get("steps") or () if line["step"] == step), None)
    sets = {name: at_step(of_set, step) for name, of_set in (found.get("sets") or {}).items()}
    return {"before": found.get("before"), "after": after, "sets": sets}


def _pairs(prefix: str, found: Evaluations) -> Iterator[tuple[str, float, float]]:
    before, after = found.get("before") or {}, found.get("after") or {}
    for name, value in before.items():
        if all(isinstance(one, int | float) for one in (value, after.get(name))):
            yield f"{prefix}{name}", value, after[name]


def _described(name: str, recipe: Recipe) -> dict[str, Any]:
    """A run for the template: its recipe without folders of the machine that it ran on."""
    tree = without_folders(recipe.model_dump(mode="json", exclude_defaults=True))
    tree["run"].pop("root", None)
    data = sorted({Path(path).name for path in recipe.data.model_dump().values() if isinstance(path, str)})
    return {"name": name, "steps": recipe.run.steps, "data": data, "recipe": yaml.safe_dump(tree, sort_keys=False)}


def without_folders(value: Any) -> Any:
    """A tree whose absolute paths are their last names."""
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    is_path = isinstance(value, str) and re.fullmatch(r"/[^\n]*", value) and not value.startswith(BUNDLED)
    return Path(value).name if is_path else value
