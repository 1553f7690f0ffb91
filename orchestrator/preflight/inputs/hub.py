"""Names on the Hugging Face Hub, pinned to a commit before a run starts: so that a resume reads the same files.

Models are fetched into the Hub's own cache, safetensors and no code; members then read them from there. Without a
network the cache must have what a recipe names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.load import parse_recipe
from configs.names.hub import HUB, HubName, hub_name
from configs.names.paths import Named, paths_in
from configs.refusal import RecipeError, reason
from configs.schema import Recipe
from orchestrator.data.files import arrow

FETCHED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken", "LICENSE*", "README.md")


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with its names on the Hub at commits that are in the caches. Raises RecipeError."""
    tree = recipe.model_dump(mode="json")
    for named in paths_in(tree):
        if named.kind == "model":
            _pin_model(named)
        elif named.kind == "data":
            _pin_data(named)
    return recipe if tree == recipe.model_dump(mode="json") else parse_recipe(tree)


def _pin_model(named: Named) -> None:
    if name := _name(named.text, named.where):
        named.holder[named.key] = str(replace(name, revision=_fetched(name, named.where).name))


def _pin_data(named: Named) -> None:
    name = _name(named.text, named.where)
    if name and not name.pinned:
        try:
            named.holder[named.key] = str(replace(name, revision=arrow.commit_of(name)))
        except Exception as error:  # as below
            raise _refusal(named.where, name, error) from None


def _name(path: str, where: str) -> HubName | None:
    if not path.startswith(HUB):
        return None
    if (name := hub_name(path)) is None:
        raise RecipeError(f"{where}: {path} is no name on the Hub; write hub:owner/name or hub:owner/name@revision")
    return name


def _fetched(name: HubName, where: str) -> Path:
    """The folder of a model at a commit, which is the folder's name."""
    from huggingface_hub import snapshot_download

    if name.split or name.subset:
        raise RecipeError(f"{where}: {name} has a part that no model has; write hub:{name.repository}")
    try:
        return Path(snapshot_download(name.repository, revision=name.revision or None, allow_patterns=list(FETCHED)))
    except Exception as error:  # the library raises errors of its own, of httpx and of the system
        raise _refusal(where, name, error) from None


def _refusal(where: str, name: HubName, error: Exception) -> RecipeError:
    return RecipeError(
        f"{where}: {str(name).removeprefix(HUB)} is no path on this machine, and cannot be had from the Hub "
        f"({type(error).__name__}: {reason(error)}); give a local path, or connect once, so that the Hub's cache has it"
    )
