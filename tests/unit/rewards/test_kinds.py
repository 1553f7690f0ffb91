"""Each kind of reward against cases written by hand, wrong answers among them."""

from __future__ import annotations

from typing import Any

import pytest

from configs.load import parse_recipe
from configs.reward_rules import KINDS, component_names
from configs.roles.reward import Reward
from rewards.response import Rejection, Response
from rewards.table import TABLE
from tests.unit.recipes import refusal, tree
from tests.unit.rewards.tried import rule_of, tried

ROW = {"answer": "The Eiffel Tower", "answers": ["Paris", "paris, france"], "blank": "the"}
SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ({}, "eiffel tower", 1.0),
        ({}, "  An EIFFEL  tower!!\n", 1.0),
        ({}, "Eiffel", 0.0),
        ({}, "The Eiffel Tower is in Paris", 0.0),
        ({}, "Ｅiffel ｔower", 1.0),
        ({"field": "answers"}, "Paris (France)", 1.0),
        ({"field": "answers"}, "Lyon", 0.0),
        ({"field": "nothing"}, "", 0.0),
        ({"field": "blank"}, "", 0.0),
        ({"extract": r"Answer: (.*)"}, "Answer: Big Ben\nAnswer: the Eiffel tower.", 1.0),
        ({"extract": r"Answer: (.*)"}, "Answer: Eiffel tower\nAnswer: Big Ben", 0.0),
        ({"extract": r"Answer: .*"}, "no answer", 0.0),
        ({"extract": r"[A-Z]\w+ [A-Z]\w+$"}, "It is the Eiffel Tower", 1.0),
    ],
)
def test_a_match_is_of_normalised_text(rule: dict[str, Any], text: str, expected: float) -> None:
    assert tried({"kind": "match", **rule}, text, 1, ROW) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"n": 3}', 1.0),
        ('```json\n{"n": 3}\n```', 1.0),
        ('\n```\n{"n": 3}\n```\n', 1.0),
        ('{"n": "3"}', 0.0),
        ('{"n": 3, "m": 4}', 0.0),
        ('{"n": 3} and more', 0.0),
        ('Here: {"n": 3}', 0.0),
        ("{'n': 3}", 0.0),
        ('{"n": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_a_response_is_json_that_the_schema_allows(text: str, expected: float) -> None:
    assert tried({"kind": "json_schema", "shape": SHAPE}, text, 1, {}) == expected


def test_a_schema_fetches_nothing() -> None:
    value = tried({"kind": "json_schema", "shape": {"$ref": "http://127.0.0.1:9/schema"}}, "{}", 1, {})
    assert isinstance(value, Rejection) and "127.0.0.1:9" in value.reason


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ({"text": r"^\d+$"}, "42", 1.0),
        ({"text": r"^\d+$"}, "42!", 0.0),
        ({"text": r"<think>.*</think>"}, "<think>a</think> b", 1.0),
        ({"text": r"<think>.*</think>", "full": True}, "<think>a</think> b", 0.0),
        ({"text": r"(?s)<think>.*</think>.+", "full": True}, " <think>a\nb</think> b\n", 1.0),
    ],
)
def test_a_format_is_a_regular_expression(rule: dict[str, Any], text: str, expected: float) -> None:
    assert tried({"kind": "regex", **rule}, text, 1, {}) == expected


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0.0), (5, 0.0), (9, 0.8), (10, 1.0), (20, 1.0), (21, 0.8), (25, 0.0), (90, 0.0)]
)
def test_length_falls_off_by_its_slope(tokens: int, expected: float) -> None:
    assert tried({"kind": "length", "low": 10, "high": 20, "slope": 5}, "", tokens, {}) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("1/2", r"So it is \boxed{\frac{1}{2}}.", 1.0),
        (r"\frac{1}{2}", "The answer is 0.5", 1.0),
        ("x^2+1", r"$1 + x^2$", 1.0),
        ("(x+1)^2", r"\boxed{x^2+2x+1}", 1.0),
        (42, "Therefore the answer is $42$.", 1.0),
        ("(1,2)", r"\boxed{(1, 2)}", 1.0),
        ("42", "Therefore the answer is $43$.", 0.0),
        ("1/2", r"\boxed{\frac{1}{3}}", 0.0),
        ("x^2+1", r"\boxed{x^2-1}", 0.0),
        ("(1,2)", r"\boxed{(2, 1)}", 0.0),
        ("42", "I do not know.", 0.0),
        ("42", r"\boxed{41} or \boxed{42}", 0.0),
        ("42", "", 0.0),
    ],
)
def test_a_final_answer_is_right_as_mathematics(answer: Any, text: str, expected: float) -> None:
    assert tried({"kind": "maths"}, text, 1, {"answer": answer}) == expected


@pytest.mark.parametrize(
    ("row", "reason"), [({}, "its row has no 'answer'"), ({"answer": "???"}, "'???' cannot be read as mathematics")]
)
def test_a_row_without_mathematics_rejects_its_response(row: dict[str, Any], reason: str) -> None:
    value = tried({"kind": "maths"}, "42", 1, row)
    assert isinstance(value, Rejection) and reason in value.reason


def test_the_chat_of_a_response_is_its_prompt() -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert Response("", 0, {"prompt": "p"}).messages == [{"role": "user", "content": "p"}]
    assert Response("", 0, {"messages": [*chat, {"role": "assistant", "content": "shown"}]}).messages == chat
    assert Response("", 0, {"messages": chat}).messages == chat


def test_every_kind_of_the_recipe_is_in_the_table() -> None:
    assert set(TABLE) == set(KINDS)


def test_components_are_named_by_kind_or_name() -> None:
    rules = [
        rule_of(kind="length"),
        rule_of(kind="length"),
        rule_of(function="a:b", name="judge"),
        rule_of(kind="exact"),
    ]
    assert component_names(rules, model=True) == ("length", "length_2", "judge", "exact", "model")
    named = [rule_of(kind="length"), rule_of(kind="exact", name="length")]
    assert component_names(named, model=False) == ("length_2", "length"), "a given name comes first"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"kind": "spell"}], "reward.rules.0.kind: 'spell' is wrong: input should be 'length'"),
        ([{"kind": "length", "name": "a"}, {"kind": "exact", "name": "a"}], "two components are named 'a'"),
        ([{"kind": "length", "name": "a b"}], "reward.rules.0.name: 'a b' is wrong"),
        ([{"kind": "length", "text": "x"}], "reward.rules.0.text: unknown key; allowed: kind, weight, name, low"),
        (
            [{"function": "my rewards"}],
            "reward.rules.0.function: 'my rewards' is wrong: 'my rewards' names no function",
        ),
        ([{"function": "m:f", "seconds": 0}], "reward.rules.0.seconds: 0 is wrong"),
        ([{"kind": "json_schema", "shape": {"type": "nothing"}}], "is no JSON schema"),
        ([{"kind": "match", "extract": "("}], "'(' is no regular expression"),
        ([{"weight": 2}], "reward.rules.0.kind: missing"),
    ],
)
def test_a_rule_is_refused_with_what_is_allowed(rules: list[dict[str, Any]], message: str) -> None:
    assert message in refusal({"reward.rules": rules})


def test_a_rule_as_earlier_versions_resolved_it_is_read() -> None:
    old = {"kind": "length", "weight": 1.0, "text": None, "field": "answer", "low": 0, "high": 8}
    (rule,) = parse_recipe(tree({"reward.rules": [old]})).reward.rules
    assert rule == rule_of(kind="length", high=8)


def test_a_reward_resolved_and_read_again_is_equal() -> None:
    rules = [{"function": "m:f"}, {"kind": "a.b:c", "low": 3}, {"kind": "json_schema", "shape": SHAPE}]
    reward = Reward.model_validate({"rules": rules})
    assert Reward.model_validate(reward.model_dump(mode="json")) == reward
