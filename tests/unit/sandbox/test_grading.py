"""Tests of a row, code of a response, and comparisons outside of the sandbox."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rewards.sandbox.cases import Case, read_cases
from rewards.sandbox.compare import same_output, same_value
from rewards.sandbox.extract import code_in
from rewards.sandbox.grade import grade
from rewards.sandbox.inside.program import plain
from rewards.sandbox.limits import Limits
from rewards.sandbox.mechanisms import Mechanism


def test_cases_of_a_row() -> None:
    call, printed = Case("", "f(1)", 2), Case("1\n", None, "2")
    assert read_cases([{"call": "f(1)", "expect": 2}, {"input": "1\n", "output": "2"}]) == [call, printed]
    assert read_cases('[{"call": " f(1)", "expect": null}]') == [Case("", " f(1)", None)]
    filled = {"call": None, "expect": None, "input": "1\n", "output": "2"}  # as a table holds mixed cases
    assert read_cases([filled]) == [printed]
    assert read_cases([{"output": "2"}])[0].input == ""
    assert "expect" not in call.given and "2" not in str(printed.given.values())


@pytest.mark.parametrize(
    "tests",
    [None, [], "", "[", 3, {}, [3], [{}], [{"call": "f("}], [{"call": "f(", "expect": 1}], [{"call": "f(1)"}],
     [{"call": 3, "expect": 1}], [{"input": "1"}], [{"input": 1, "output": "1"}], [{"input": "1", "output": 1}],
     [{"call": "f()", "expect": 1, "output": "2"}], [{"output": "1", "tolerance": 3}], [{"call": "", "expect": 1}],
     "[" * 10**5, [{"call": "x = 1", "expect": 1}], [{"assert": "f() == 1"}]],
)  # fmt: skip
def test_tests_that_are_refused(tests: Any) -> None:
    with pytest.raises(ValueError, match="write"):
        read_cases(tests)


@pytest.mark.parametrize(
    ("expect", "claimed", "right"),
    [
        (3, "3", True), (3, "3.0", True), (3, "3.0000001", False), (3.0, "3", True), (3.0, "3.0000000001", True),
        (3, "true", False), (1, "true", False), (True, "1", False), (True, "true", True), (None, "null", True),
        (None, "0", False), (0, "null", False), (False, "0", False), ("1", "1", False), (1, '"1"', False),
        ("a", '"a"', True), ([1, [2]], "[1,[2]]", True), ([1, 2], "[1]", False), ([], "{}", False),
        ({"a": 1.5}, '{"a": 1.5}', True), ({"a": 1}, '{"a": 1, "b": 2}', False), ({"1": 2}, '{"1": 2}', True),
        (0.0, "1e-12", True), (1e308, "Infinity", False), (1, "NaN", False), (1, "", False), (1, "1 1", False),
        (1.5, "9" * 400, False), (1, "9" * 5000, False), ([[1]], "[" * 10**5, False), ((1, 2), "[1, 2]", True),
        (2**70, str(2**70), True), (2**70, str(2**70 + 1), False), (math.inf, "1", False), ("", "null", False),
    ],
)  # fmt: skip
def test_values_are_compared_as_plain_json(expect: Any, claimed: str, right: bool) -> None:
    assert same_value(expect, claimed, 1e-6) is right


@pytest.mark.parametrize(
    ("expect", "found", "right"),
    [
        ("3\n", "3", True), ("3", "3 \n\n", True), ("3", "\n3", False), ("3", "4", False), ("", "", True),
        ("", "0", False),
        ("1\n2", "1\r\n2\r\n", True), ("1 2", "1  2", False), ("0.5", "0.50000001", True),
        ("0.5 a", "0.5000001 a", True),
        ("0.5", "0.51", False), ("5", "5.0", False), ("1.0", "nan", False), ("1.0", "x", False), ("1e3", "1000", True),
        ("inf", "1e999", False), ("1.0", "9" * 400, False), ("a.b", "a.b", True), ("a.b", "a.c", False),
        ("YES", "yes", False), ("0.5\n1", "0.5", False), ("1.5 2", "1.5 3", False),
    ],
)  # fmt: skip
def test_outputs_are_compared_line_by_line(expect: str, found: str, right: bool) -> None:
    assert same_output(expect, found, 1e-6) is right


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize("value", [Liar(1), [Liar(1)], {Liar(1): 1}, {1.5: 1}, {1}, b"", 1j, object, {None: 1}])
def test_only_plain_values_leave_the_sandbox(value: Any) -> None:
    with pytest.raises(TypeError, match="plain JSON"):
        plain(value)
    assert plain([True, 1, 1.5, "a", None, (1,), {"a": [], 2: 3}]) == [True, 1, 1.5, "a", None, [1], {"a": [], "2": 3}]


FENCED = "Try this:\n```python\nx = 1\n```\nno, better:\n```py\nx = 2\n```\nwhich prints\n```text\n2\n```\n"


@pytest.mark.parametrize(
    ("text", "where", "code"),
    [
        (FENCED, "last_block", "x = 2\n"), (FENCED, "first_block", "x = 1\n"), (FENCED, "whole", FENCED),
        ("```\na\n```", "last_block", "a\n"), ("```\na\n```\n```Python\nb\n```\n```\nc\n```", "last_block", "b\n"),
        ("```python\nx = 1\n", "last_block", None), ("x = 1", "last_block", None), ("", "last_block", None),
        ("```bash\nls\n```", "last_block", None), ("````\n```\na\n```\n````", "last_block", "```\na\n```\n"),
        ("```python\r\nx\r\n```\r\n", "last_block", "x\n"), ("~~~\na\n~~~", "last_block", "a\n"),
        ("```python\n```", "last_block", ""), ("`x`, ```y``` \n```\na\n```", "last_block", "a\n"),
        ("```python title=\"a\"\nx\n```", "last_block", "x\n"), ("```{.python}\nx\n```", "last_block", None),
    ],
)  # fmt: skip
def test_where_the_code_lies(text: str, where: Any, code: str | None) -> None:
    assert code_in(text, where) == code


def test_long_responses_are_read_in_one_pass() -> None:
    assert code_in("```\n" * 50_001 + "`" * 10**5, "last_block") is not None


def test_partial_grades_and_their_reason(mechanism: Mechanism) -> None:
    cases = read_cases([{"call": f"f({x})", "expect": 6 // x} for x in (1, 2, 4, 3)])
    program = "def f(x): return 6 / x if x == 4 else 6 // x"
    some = grade(mechanism, program, cases, Limits(wall_seconds=30), 1e-6, all_cases=True)
    assert (some.passed, some.cases, some.share, some.whole) == (3, 4, 0.75, False)
    assert some.reason == "case 2: the call gave something else"
    assert grade(mechanism, program, cases, Limits(wall_seconds=30), 1e-6, all_cases=False).passed == 2
    raised = grade(mechanism, "def f(x): return 1 / 0", cases, Limits(wall_seconds=30), 1e-6, all_cases=False)
    assert raised.reason == "case 0: it ended with 1 (ZeroDivisionError: division by zero)"
