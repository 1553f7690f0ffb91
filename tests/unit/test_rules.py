"""Rule rewards are 1 or 0 from text, length and the prompt's row."""

from __future__ import annotations

from typing import Any

import pytest

from configs.schema import Rule
from rewards.rules import rule_reward


@pytest.mark.parametrize(
    ("rule", "text", "tokens", "row", "expected"),
    [
        ({"kind": "length", "low": 2, "high": 4}, "", 1, {}, 0.0),
        ({"kind": "length", "low": 2, "high": 4}, "", 2, {}, 1.0),
        ({"kind": "length", "low": 2, "high": 4}, "", 4, {}, 1.0),
        ({"kind": "length", "low": 2, "high": 4}, "", 5, {}, 0.0),
        ({"kind": "contains", "text": "ARR"}, "Arr, matey", 3, {}, 1.0),
        ({"kind": "contains", "text": "straße"}, "STRASSE", 3, {}, 1.0),
        ({"kind": "contains", "text": "a.r"}, "arr", 3, {}, 0.0),
        ({"kind": "regex", "text": r"^\d+$"}, "42", 3, {}, 1.0),
        ({"kind": "regex", "text": r"^\d+$"}, "42!", 3, {}, 0.0),
        ({"kind": "exact"}, " 42\n", 3, {"answer": 42}, 1.0),
        ({"kind": "exact"}, "43", 3, {"answer": "42"}, 0.0),
        ({"kind": "exact", "field": "gold"}, "42", 3, {"gold": " 42 ", "answer": "43"}, 1.0),
        ({"kind": "exact"}, "", 3, {}, 0.0),
    ],
)
def test_a_rule_is_fulfilled_or_not(
    rule: dict[str, Any], text: str, tokens: int, row: dict[str, Any], expected: float
) -> None:
    assert rule_reward(Rule(**rule), text, tokens, row) == expected
