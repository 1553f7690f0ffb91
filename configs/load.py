"""Reads a recipe from files and command-line overrides; refuses a bad one in one line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs import rules
from configs.names.hub import HUB, hub_name, may_be_on_the_hub, snapshot
from configs.names.paths import Named, paths_in
from configs.node import OF_STAGE
from configs.reading import wording, yaml_tree
from configs.reading.gpu_defaults import with_gpu_defaults
from configs.reading.text_file import read_text
from configs.refusal import RecipeError, reason, shown
from configs.schema import FORMAT, Recipe

BUNDLED = "bundled:"
LONGEST_FILE = 2**24  # bytes
MOST_PARENTS = 32
NAMED = 8  # wrong keys that a refusal names


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe without `stages`: see load_tree, parse_recipe. Raises RecipeError."""
    tree = load_tree(path, overrides)
    if "stages" in tree:
        raise RecipeError(f"{path}: has stages, and one recipe is wanted here; name a recipe or a run without stages")
    return parse_recipe(tree)


def load_tree(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read `path`, what it extends, and `key=value` overrides, unchecked.

    Relative paths inside a file are relative to that file; in an override, to the current folder.
    Raises RecipeError.
    """
    tree = _read(Path(path), seen=())
    for override in overrides:
        tree = merged(tree, _anchor(parse_override(override), current_folder()))
    return tree


def parse_recipe(tree: dict[str, Any]) -> Recipe:
    """Validate a whole tree, then the rules on combinations of keys. Raises RecipeError: a line with the first NAMED
    wrong keys, or the first rule that the recipe breaks."""
    tree = with_gpu_defaults(tree)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        lines = wording.lines(Recipe, tree, error)
        more = [f"and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
        raise RecipeError("; ".join([*lines[:NAMED], *more])) from None
    rules.refuse(recipe)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load_recipe` reads it back to an equal tree."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def with_swaps(recipe: Recipe, step: int, paths: Mapping[str, str | None]) -> Recipe:
    """The recipe with swaps of models at a step: model -> directory, or None to remove that step's swap. Raises
    RecipeError."""
    tree = recipe.model_dump(mode="json")
    for model, path in paths.items():
        if model not in tree["models"]:
            raise RecipeError(f"{model}: no such model in this run; allowed: {list(recipe.scored_models)}")
        swaps = recipe.models[model].swaps | {step: path}
        tree["models"][model]["swaps"] = {first: there for first, there in swaps.items() if there is not None}
    return parse_recipe(tree)


def model_directory(path: str) -> Path:
    """The directory of a recipe's model path. `bundled:NAME` is in the user cache, where set-up converted it;
    `hub:NAME@COMMIT` in the Hub's cache."""
    if path.startswith(BUNDLED):
        return cache_directory() / "models" / path.removeprefix(BUNDLED)
    name = hub_name(path)
    return snapshot(name) if name else Path(path)


def cache_directory() -> Path:
    """LOGRATIO_CACHE, or the user's cache folder. Raises RecipeError where the user has no home."""
    if own := os.environ.get("LOGRATIO_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or home_directory() / ".cache") / "logratio"


def home_directory() -> Path:
    """The user's home. Raises RecipeError where neither HOME nor the user database names one."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise RecipeError(f"HOME: is not set ({reason(error)}); set it to your home folder") from None


def current_folder() -> Path:
    """Raises RecipeError where the current folder was removed."""
    try:
        return Path.cwd()
    except OSError as error:
        raise RecipeError(f"the current folder cannot be found ({reason(error)}); change to one that exists") from None


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = _resolved(path, current_folder())
    if path in seen:
        raise RecipeError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}; remove one extends")
    if len(seen) > MOST_PARENTS:
        raise RecipeError(f"{path}: is extended through more than {MOST_PARENTS} files; merge some of them")
    tree = yaml_tree.parse(read_text(path, "give the path of a recipe", LONGEST_FILE), str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, found {type(tree).__name__}")
    _refuse_newer(tree.get("format"), path)
    parent = tree.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise RecipeError(f"{path}: extends: {shown(parent)} is no path; name one recipe file")
    tree = _anchor(tree, path.parent)
    return merged(_read(path.parent / parent, (*seen, path)), tree) if parent else tree


def _refuse_newer(found: Any, path: Path) -> None:
    if isinstance(found, int) and found > FORMAT:
        raise RecipeError(
            f"{path}: has format {shown(found)}, this version reads up to {FORMAT}; use the version that wrote it, or "
            "a newer one"
        )


def parse_override(override: str) -> dict[str, Any]:
    """`a.b=value` as a tree. Raises RecipeError."""
    key, equals, value = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > yaml_tree.DEEPEST:
        raise RecipeError(f"override {shown(override)}: write it as key=value, e.g. batch.prompts_per_step=8")
    try:
        key.encode()
        tree = yaml_tree.parse(value, f"override {shown(override)}")
    except UnicodeEncodeError:
        raise RecipeError(f"override {shown(override)}: is no UTF-8; write it in UTF-8") from None
    except yaml_tree.NoYaml:
        raise RecipeError(f"override {shown(override)}: the value is no YAML; quote it") from None
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` merged into `base`. A key written as a number equals the same word: steps of swaps in an override."""
    both, spelt = dict(base), {str(key): key for key in base}
    for name, value in over.items():
        key = spelt.get(str(name), name)
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def _anchor(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tree of one file with absolute paths, so that files from different folders can be merged."""
    tree = deepcopy(tree)
    for named in paths_in(tree):
        named.holder[named.key] = _anchored(named, folder)
    return tree


def _anchored(named: Named, folder: Path) -> str:
    if named.kind == "folder":  # to write to
        return str(_resolved(Path(named.text), folder))
    if named.kind == "code":
        file, _, name = named.text.rpartition(":")
        return f"{absolute_path(file, folder)}:{name}" if file.endswith(".py") else named.text
    return absolute_path(named.text, folder)


def absolute_path(value: Any, folder: Path) -> Any:
    """A path of a recipe made absolute from `folder`; any other value, `bundled:NAME`, `hub:NAME` and `stage:NAME`
    unchanged. What reads as a name on the Hub becomes `hub:NAME`."""
    if not isinstance(value, str) or value.startswith((BUNDLED, HUB, OF_STAGE)):
        return value
    if may_be_on_the_hub(value, folder):
        return f"{HUB}{value}"
    return str(_resolved(Path(value), folder))


def _resolved(path: Path, folder: Path) -> Path:
    try:
        return (folder / path.expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, `~` without a home, a NUL
        raise RecipeError(f"{shown(str(path))}: is no path ({reason(error)}); write it out in full") from None
