"""A rule of a recipe, tried on one response in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from configs.reward_rules import AnyRule, Rule
from rewards.response import Rejection, Response
from rewards.table import kind_of

_RULES: TypeAdapter[Rule] = TypeAdapter(AnyRule)


def rule_of(**keys: Any) -> Rule:
    return _RULES.validate_python(keys)


def tried(rule: Mapping[str, Any], text: str, tokens: int, row: Mapping[str, Any]) -> float | Rejection:
    read = rule_of(**rule)
    (value,) = kind_of(read).values(read, [Response(text, tokens, row)])
    return value


def rule_reward(rule: Mapping[str, Any], text: str, tokens: int, row: Mapping[str, Any]) -> float:
    value = tried(rule, text, tokens, row)
    assert not isinstance(value, Rejection), value
    return value
