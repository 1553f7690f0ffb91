"""From files and command-line overrides to a Recipe, or to one line that says what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs import findings
from configs.schema import Recipe

BUNDLED = "bundled:"


class RecipeError(Exception):
    """Bad input, in one line that joins its findings: the path, the value and the remedy of each. Commands turn it into
    exit code 2."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read `path`, what it extends, and `key=value` overrides.

    Relative paths inside a file are relative to that file; in an override, to the current folder.
    Raises RecipeError.
    """
    tree = _read(Path(path), seen=())
    for override in overrides:
        tree = _merge(tree, _anchor(_parse_override(override), Path.cwd()))
    return parse_recipe(tree)


def parse_recipe(tree: dict[str, Any]) -> Recipe:
    """Validate a whole tree. Raises RecipeError with every finding, joined in one line."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("; ".join(findings.lines(Recipe, tree, error))) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load_recipe` reads it back to an equal tree."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def with_swaps(recipe: Recipe, step: int, paths: Mapping[str, str | None]) -> Recipe:
    """The recipe with other directories for models from a step on; None takes back what was to come then. Raises
    RecipeError."""
    tree = recipe.model_dump(mode="json")
    for model, path in paths.items():
        if model not in tree["models"]:
            raise RecipeError(f"{model}: no such model in this run; allowed: {list(recipe.scored_models)}")
        swaps = recipe.models[model].swaps | {step: path}
        tree["models"][model]["swaps"] = {first: there for first, there in swaps.items() if there is not None}
    return parse_recipe(tree)


def model_directory(path: str) -> Path:
    """A recipe's model path as a directory. `bundled:NAME` lies in the user cache, where set-up converted it."""
    if path.startswith(BUNDLED):
        return cache_directory() / "models" / path.removeprefix(BUNDLED)
    return Path(path)


def cache_directory() -> Path:
    """LOGRATIO_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "logratio"
    return Path(os.environ.get("LOGRATIO_CACHE") or default)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise RecipeError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}; remove one extends")
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, found {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise RecipeError(f"{path}: extends: {parent!r} is no path; name one recipe file")
    tree = _anchor(tree, path.parent)
    return _merge(_read(path.parent / parent, (*seen, path)), tree) if parent else tree


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"override {override!r}: write it as key=value, e.g. batch.prompts_per_step=8")
    try:
        tree = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"override {override!r}: the value is no YAML; quote it") from None
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _anchor(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of one layer absolute, so that layers from different folders can be merged."""
    tree = dict(tree)
    if isinstance(tree.get("data"), dict):
        tree["data"] = {
            k: absolute_path(v, folder) if k in ("prompts", "heldout", "responses") else v
            for k, v in tree["data"].items()
        }
    if isinstance(tree.get("models"), dict):
        tree["models"] = {
            name: _anchor_model(model, folder) if isinstance(model, dict) else model
            for name, model in tree["models"].items()
        }
    if isinstance(tree.get("reward"), dict) and "model" in tree["reward"]:
        tree["reward"] = tree["reward"] | {"model": absolute_path(tree["reward"]["model"], folder)}
    return tree


def _anchor_model(model: dict[str, Any], folder: Path) -> dict[str, Any]:
    model = {key: absolute_path(value, folder) if key == "path" else value for key, value in model.items()}
    if isinstance(model.get("swaps"), dict):
        model["swaps"] = {step: absolute_path(path, folder) for step, path in model["swaps"].items()}
    return model


def absolute_path(value: Any, folder: Path) -> Any:
    """A path of a recipe, from the folder that it is relative to; what is no path is left as it is."""
    if not isinstance(value, str) or value.startswith(BUNDLED):
        return value
    return str((folder / Path(value).expanduser()).resolve())
