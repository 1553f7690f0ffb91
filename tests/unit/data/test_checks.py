"""What rules, routes and prompts read of a prompt row: dotted paths, and what becomes of rows that lack a field."""

from __future__ import annotations

from typing import Any

import pytest

from configs.names.row_fields import Template, field_of
from configs.objective import Route
from configs.refusal import RecipeError
from configs.reward_rules import ContainsRule, ExactRule, LengthRule, Rule
from orchestrator.data.checks import Sample, check_answers, check_route
from orchestrator.samples.flow import teacher_of

OTHERS = {1: {"prompt": "a", "reward_model": {"ground_truth": "4", "style": "rule"}, "extra_info": {}}}


@pytest.mark.parametrize(
    ("row", "path", "value"),
    [
        ({"a": {"b": {"c": 0}}}, "a.b.c", 0),
        ({"a": {"b": 1}, "a.b": 2}, "a.b", 2),
        ({"a": [{"b": 1}, {"b": 2}]}, "a.1.b", 2),
        ({"a": [1]}, "a.1", None),
        ({"a": [1]}, "a.-1", None),
        ({"a": [1]}, f"a.{10**30}", None),
        ({"a": "text"}, "a.upper", None),
        ({"a": None}, "a.b", None),
        ({}, "", None),
        ({}, ".", None),
    ],
)
def test_a_dotted_path_leads_into_what_is_nested(row: dict[str, Any], path: str, value: Any) -> None:
    assert field_of(row, path) == value


def exact(field: str) -> tuple[Rule, ...]:
    return (LengthRule(), ExactRule(field=field))


def test_a_field_that_no_row_has_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(RecipeError) as refusal:
        check_answers(exact("answer"), [Sample("p.jsonl", OTHERS)])
    assert str(refusal.value) == (
        "reward.rules.1.field: no row of p.jsonl has 'answer', so no response would be right; name a field that rows "
        "have; the first has ['prompt', 'reward_model.ground_truth', 'reward_model.style', 'extra_info']"
    )
    assert check_answers(exact("reward_model.ground_truth"), [Sample("p.jsonl", OTHERS)]) == []


def test_a_field_that_some_rows_lack_is_warned_of_with_their_number_and_the_first_line() -> None:
    rows = {1: {"answer": 1}, 3: {"answer": None}, 4: {}, 9: {"answer": 0}}
    assert check_answers(exact("answer"), [Sample("p.jsonl", rows)]) == [
        "reward.rules.1.field: 2 of 4 rows of p.jsonl lack 'answer', the first in line 3; the rule gives every "
        "response to them 0"
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": {"value": 4}}, "p.jsonl line 2: answer is a mapping; name a field in it, e.g. answer.value"),
        ({"answer": ["4"]}, "p.jsonl line 2: answer is a list; name a place in it, e.g. answer.0"),
    ],
)
def test_an_answer_that_no_text_can_equal_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        check_answers(exact("answer"), [Sample("p.jsonl", {1: {"answer": 4}, 2: row})])
    assert str(refusal.value) == message


def test_rules_that_read_no_field_ask_for_none() -> None:
    assert check_answers((LengthRule(), ContainsRule(text="x")), [Sample("p.jsonl", {1: {}})]) == []


def test_a_route_goes_by_a_nested_field_and_refuses_a_row_that_lacks_it() -> None:
    route = Route(field="meta.kind", models={"poem": "poet", "true": "other", "3": "third"})
    rows = {1: {"meta": {"kind": "poem"}}, 2: {"meta": {"kind": True}}, 3: {"meta": {"kind": 3}}}
    for row in rows.values():
        check_route(route, row, "p.jsonl line 1")
    assert [teacher_of(route, row) for row in rows.values()] == ["poet", "other", "third"]
    for row, value in (({"meta": {}}, "None"), ({"meta": {"kind": "x"}}, "'x'"), ({"meta": 1}, "None")):
        with pytest.raises(RecipeError, match=rf"p.jsonl line 7: meta.kind is {value}, which names no teacher"):
            check_route(route, row, "p.jsonl line 7")
        assert teacher_of(route, row) is None


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{prompt}: {meta.hint}", "q: {x}"),
        ("{meta[hint]}", "{x}"),
        ("{steps.1} {{literal}}", "b {literal}"),
        ("{number:05.1f} {prompt!r}", "003.0 'q'"),
    ],
)
def test_a_prompt_reaches_nested_fields(template: str, text: str) -> None:
    row = {"prompt": "q", "meta": {"hint": "{x}"}, "steps": ["a", "b"], "number": 3}
    assert Template().fill(template, row) == text


@pytest.mark.parametrize("template", ["{meta.other}", "{prompt.__class__}", "{prompt.upper}", "{none}", "{}", "{0}"])
def test_a_field_that_a_row_lacks_is_named(template: str) -> None:
    with pytest.raises(KeyError):
        Template().fill(template, {"prompt": "q", "meta": {"hint": "h"}, "none": None})


@pytest.mark.parametrize(
    "template", ["{prompt", "{prompt:d}", "{prompt:99999999999}", "{prompt:{wide}}", "{prompt!x}", "{meta:>3}", "}"]
)
def test_a_bad_format_string_is_a_value_error(template: str) -> None:
    with pytest.raises(ValueError):
        Template().fill(template, {"prompt": "q", "meta": {}, "wide": 10**9})
