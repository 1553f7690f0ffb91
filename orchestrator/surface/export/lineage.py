"""What a run's student was before: the runs that it comes from, and the model that the first of them began with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import BUNDLED, load_recipe, model_directory
from configs.node import STUDENT
from configs.schema import Recipe
from orchestrator.surface.submission import RECIPE

LICENCES = ("LICENSE*", "LICENCE*", "license*", "COPYING*")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


@dataclass(frozen=True)
class Base:
    """The model that everything began with. `name`: for a reader; `licence`: as its README.md says, None if it does
    not; `files`: of its licence."""

    name: str
    licence: str | None
    files: tuple[Path, ...]


def runs_behind(directory: Path) -> list[tuple[Path, Recipe]]:
    """The run in `directory` and those whose model it began with, the first one first. Raises RecipeError."""
    found: list[tuple[Path, Recipe]] = []
    run: Path | None = directory
    while run is not None and run not in [earlier for earlier, _ in found]:
        recipe = load_recipe(run / RECIPE)
        found.insert(0, (run, recipe))
        before = Path(recipe.path_of(STUDENT)).parent
        run = before if (before / RECIPE).is_file() else None
    return found


def base_of(recipe: Recipe) -> Base:
    """The model that a first run began with, as its files describe it."""
    path = recipe.path_of(STUDENT)
    folder = model_directory(path)
    files = sorted({file for pattern in LICENCES for file in folder.glob(pattern) if file.is_file()})
    said = _front_matter(folder / "README.md").get("license")
    name = path.removeprefix(BUNDLED) if path.startswith(BUNDLED) else folder.name
    return Base(name, said if isinstance(said, str) else None, tuple(files))


def _front_matter(file: Path) -> dict[str, Any]:
    """The YAML head of a model card; empty where there is none that can be read."""
    import yaml

    try:
        head = _FRONT_MATTER.match(file.read_text(encoding="utf-8"))
        found = yaml.safe_load(head[1]) if head else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
