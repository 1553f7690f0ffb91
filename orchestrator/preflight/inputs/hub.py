"""Names on the Hugging Face Hub, pinned to a commit before a run starts: so that a resume reads the same files.

Models are fetched into the Hub's own cache, safetensors and no code; members then read them from there. Without a
network the cache must have what a recipe names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.load import parse_recipe
from configs.names.hub import HUB, HubName, hub_name
from configs.refusal import RecipeError, reason
from configs.schema import Recipe
from orchestrator.data.files import arrow

FETCHED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken", "LICENSE*", "README.md")


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with its names on the Hub at commits that are in the caches. Raises RecipeError."""
    tree = recipe.model_dump(mode="json")
    for name, model in tree["models"].items():
        _pin_model(model, "path", f"models.{name}.path")
        for step in model["swaps"]:
            _pin_model(model["swaps"], step, f"models.{name}.swaps.{step}")
    _pin_model(tree["reward"], "model", "reward.model")
    if isinstance(tree["data"]["prompts"], str):
        _pin_data(tree["data"], "prompts", "data.prompts")
    else:
        for number, entry in enumerate(tree["data"]["prompts"]):
            _pin_data(entry, "path", f"data.prompts.{number}.path")
    _pin_data(tree["data"], "heldout", "data.heldout")
    return recipe if tree == recipe.model_dump(mode="json") else parse_recipe(tree)


def _pin_model(holder: Any, key: Any, where: str) -> None:
    if name := _name(holder[key], where):
        holder[key] = str(replace(name, revision=_fetched(name, where).name))


def _pin_data(holder: Any, key: str, where: str) -> None:
    name = _name(holder[key], where)
    if name and not name.pinned:
        try:
            holder[key] = str(replace(name, revision=arrow.commit_of(name)))
        except Exception as error:  # as below
            raise _refusal(where, name, error) from None


def _name(path: Any, where: str) -> HubName | None:
    if not isinstance(path, str) or not path.startswith(HUB):
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
