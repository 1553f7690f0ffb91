"""The smallest recipe, and ways to change it: for tests of what is loaded and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import RecipeError, parse_recipe
from configs.schema import Recipe

SMALLEST: dict[str, Any] = {
    "run": {"name": "r", "steps": 2},
    "models": {"student": {"path": "/s"}, "teacher": {"path": "/t"}},
    "data": {"prompts": "/p.jsonl"},
    "batch": {"prompts_per_step": 4},
    "sampling": {"max_response_tokens": 16},
    "objective": {"target": "teacher"},
    "learner": {"optimizer": {"lr": 0.1}},
}
CROSS_ENTROPY = {"objective.target": "data", "objective.prefix": "dataset", "objective.reverse_weight": 0.0}
RULED = {"reward.rules": [{"kind": "length"}]}
REWARDED = RULED | {"objective.outcome.weight": 1.0}
REWARD_ONLY = REWARDED | {"objective.target": "none"}
REMOVED = object()


def tree(changes: dict[str, Any]) -> dict[str, Any]:
    """SMALLEST with dotted keys set or removed."""
    whole = copy.deepcopy(SMALLEST)
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = whole
        for part in parents:
            node = node.setdefault(part, {})
        if value is REMOVED:
            del node[last]
        else:
            node[last] = value
    return whole


def loaded(changes: dict[str, Any]) -> Recipe:
    return parse_recipe(tree(changes))


def refusal(changes: dict[str, Any]) -> str:
    """The one line that refuses SMALLEST with changes."""
    with pytest.raises(RecipeError) as error:
        loaded(changes)
    assert str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def recipe(**changes: Any) -> Recipe:
    return loaded({key.replace("__", "."): value for key, value in changes.items()})


def write(file: Path, content: dict[str, Any] | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file
