"""Runs to arms: the recipes that differ in more than their seed. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.schema import Recipe
from orchestrator.surface.submission import portable

KEY = 10  # characters of a hash that name an arm
ASIDE = {
    "run": ("name", "root", "grace_seconds"),
    "record": ("every", "scores_mib"),
    "metrics": ("trackers", "movement"),
    "cluster": None,
}


def key_of(recipe: Recipe) -> str:
    """A hash of the resolved recipe, its seed included, without what does not move its weights: name, place, records,
    trackers, cluster. 10 characters."""
    return _hash(_bare(recipe))


def arm_of(recipe: Recipe) -> str:
    """The same without the seed."""
    return _hash(_without_seed(recipe))


def labels(recipes: Sequence[Recipe]) -> list[str]:
    """What each of several arms has in its recipe that another has not, as `key=value, ...`."""
    flat = [dict(_leaves(_without_seed(recipe))) for recipe in recipes]
    keys = dict.fromkeys(key for one in flat for key in one)
    differing = [key for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1]
    found = [", ".join(f"{key}={_written(one[key])}" for key in differing if key in one) for one in flat]
    return [label or recipe.run.name for label, recipe in zip(found, recipes, strict=True)]


def _hash(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(portable(tree), sort_keys=True).encode()).hexdigest()[:KEY]


def _bare(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json")
    for key, names in ASIDE.items():
        if names is None:
            tree.pop(key, None)
        for name in names or ():
            tree[key].pop(name, None)
    return tree


def _without_seed(recipe: Recipe) -> dict[str, Any]:
    tree = _bare(recipe)
    tree["run"].pop("seed")
    return tree


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name)
        else:
            yield name, value


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
