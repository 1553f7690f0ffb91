"""Rule rewards are 1 or 0 from text, length and the prompt's row; `overlong` is a penalty of 0 to -1."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.rewards.tried import rule_reward


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
        ({"kind": "exact"}, "None", 3, {"answer": None}, 0.0),
        ({"kind": "exact", "field": "reward_model.ground_truth"}, "4", 3, {"reward_model": {"ground_truth": 4}}, 1.0),
        ({"kind": "exact", "field": "gold.1"}, "5", 3, {"gold": ["4", "5"]}, 1.0),
        ({"kind": "exact", "field": "a.b"}, "5", 3, {"a.b": 5, "a": {"b": 6}}, 1.0),
    ],
)
def test_a_rule_gives_its_value_of_text_length_and_row(
    rule: dict[str, Any], text: str, tokens: int, row: dict[str, Any], expected: float
) -> None:
    assert rule_reward(rule, text, tokens, row) == expected


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0.0), (10, 0.0), (11, -0.1), (15, -0.5), (20, -1.0), (21, -1.0), (10_000, -1.0)]
)
def test_the_overlong_penalty_grows_with_every_token_up_to_one(tokens: int, expected: float) -> None:
    assert rule_reward(dict(kind="overlong", low=10, high=20), "any text", tokens, {}) == pytest.approx(expected)


def test_an_overlong_rule_whose_bounds_meet_is_a_step() -> None:
    rule = {"kind": "overlong", "low": 10, "high": 10}
    assert [rule_reward(rule, "", tokens, {}) for tokens in (9, 10, 11)] == [0.0, 0.0, -1.0]


def test_an_overlong_rule_costs_nothing_where_its_bounds_are_not_given() -> None:
    assert rule_reward(dict(kind="overlong", low=1_000_000), "", 4096, {}) == 0.0
