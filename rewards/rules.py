"""Rule rewards from a response's text and length: 1 or 0, `overlong` 0 to -1. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from configs.own_code import imported
from configs.roles import Rule
from configs.row_fields import answer_of


def rule_reward(rule: Rule, text: str, tokens: int, row: Mapping[str, Any]) -> float:
    """1.0 when the response fulfils the rule, else 0.0; `overlong` is a penalty, 0.0 to -1.0; a rule of your own
    returns any number.

    `tokens` counts the response, `row` is its prompt row.
    """
    reward = _RULES.get(rule.kind) or imported(rule.kind)
    return float(reward(rule, text, tokens, row))


def _length(rule: Rule, text: str, tokens: int, row: Mapping[str, Any]) -> bool:
    return rule.low <= tokens <= rule.high


def _contains(rule: Rule, text: str, tokens: int, row: Mapping[str, Any]) -> bool:
    return (rule.text or "").casefold() in text.casefold()


def _regex(rule: Rule, text: str, tokens: int, row: Mapping[str, Any]) -> bool:
    return re.search(rule.text or "", text) is not None


def _exact(rule: Rule, text: str, tokens: int, row: Mapping[str, Any]) -> bool:
    """False for a row without an answer."""
    return text.strip() == answer_of(row, rule.field)


def _overlong(rule: Rule, text: str, tokens: int, row: Mapping[str, Any]) -> float:
    """DAPO's soft penalty: 0 up to `low` tokens, -1 from `high` on, linear between."""
    return -min(1.0, max(0.0, (tokens - rule.low) / max(1, rule.high - rule.low)))


Reward = Callable[[Rule, str, int, Mapping[str, Any]], float]  # (rule, response's text, its tokens, prompt row)

_RULES: dict[str, Reward] = {
    "length": _length,
    "contains": _contains,
    "regex": _regex,
    "exact": _exact,
    "overlong": _overlong,
}
