"""A reward rule: what CONTRIBUTING.md says goes into one file. It imports nothing, since its process starts with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def ends_early(tokens: int, text: str, row: Mapping[str, Any]) -> float:
    """1 for a response of fewer than 8 tokens that is no copy of its prompt, else 0."""
    return float(tokens < 8 and text != row["prompt"])


def keeps_below(rule: Any, text: str, tokens: int, row: Mapping[str, Any]) -> float:
    """The same with the recipe's `high` in place of 8: the form that `kind: module:function` calls."""
    return float(tokens < rule.high and text != row["prompt"])
