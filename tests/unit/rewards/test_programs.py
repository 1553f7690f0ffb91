"""Rewards of programs: right and wrong ones by hand, what a row must have, and refusals where nothing isolates."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from actors.rewarding.reward import Reward
from configs.refusal import RecipeError
from configs.reward_rules import Rule
from orchestrator.data.checks import Sample
from orchestrator.data.program_checks import check_tests
from orchestrator.preflight.isolation import check_isolation
from rewards.edit_distance import tokens_of
from rewards.response import Rejection, Response
from rewards.sandbox import isolation as isolation_module
from rewards.sandbox.isolation import NoIsolation, isolation
from rewards.table import kind_of
from tests.contributing.pages import ROOT, section
from tests.unit.recipes import loaded
from tests.unit.rewards.tried import rule_of, tried

TESTS = [{"call": "last([1, 2, 3])", "expect": 3}, {"call": "last([])", "expect": None}]
FAULTY = "def last(items):\n    if len(items) == 0:\n        return None\n    return items[0]\n"
FIX = FAULTY.replace("items[0]", "items[-1]")
REWRITTEN = "def last(xs):\n    for found in reversed(xs):\n        return found\n    else:\n        return None\n"
ROW = {"tests": TESTS, "given": FAULTY, "solution": FIX}


def block(code: str) -> str:
    return f"The fix:\n```python\n{code}```\n"


@pytest.fixture
def isolated() -> None:
    try:
        isolation()
    except NoIsolation as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ({}, block(FIX), 1.0),
        ({}, block(FAULTY), 0.0),
        ({}, FIX, 0.0),
        ({"code": "whole"}, FIX, 1.0),
        ({}, block(FIX) + block(FAULTY), 0.0),
        ({"code": "first_block"}, block(FIX) + block(FAULTY), 1.0),
        ({"partial": True}, block(FAULTY), 0.5),
        ({"partial": True}, block("def last(items): return items[-1]\n"), 0.5),
        ({"partial": True}, "I cannot.", 0.0),
        ({"partial": True}, block("def last(items): return 3\n"), 0.5),
        ({}, block("import sys\nsys.exit(0)\n"), 0.0),
    ],
)
def test_code_is_rewarded_by_its_tests(isolated: None, rule: dict[str, Any], text: str, expected: float) -> None:
    assert tried({"kind": "code"} | rule, text, 9, ROW) == expected


def test_many_responses_are_rewarded_in_their_order(isolated: None) -> None:
    rule = rule_of(kind="code", at_once=3)
    texts = [block(code) for code in (FIX, FAULTY, REWRITTEN, FAULTY, FIX)]
    assert kind_of(rule).values(rule, [Response(text, 9, ROW) for text in texts]) == [1.0, 0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("rule", "code", "expected"),
    [
        ({}, FIX, 1.0),
        ({}, FIX + "# with a comment\n\n", 1.0),
        ({}, FIX.replace("items[-1]", "(items[-1])"), 1.0),
        ({}, FAULTY, 0.0),
        ({"failed": -2.0}, FAULTY, -2.0),
        ({"failed": -2.0}, "def last(", -2.0),
        ({"charge": 0.0}, REWRITTEN, 1.0),
    ],
)
def test_a_repair_is_charged_for_what_it_changes_beyond_the_fix(
    isolated: None, rule: dict[str, Any], code: str, expected: float
) -> None:
    assert tried({"kind": "minimal_edit"} | rule, block(code), 9, ROW) == expected


def test_a_rewriting_costs_its_share_of_tokens(isolated: None) -> None:
    more = FIX.replace("    return items[-1]", "    kept = items\n    return kept[-1]")
    value = tried({"kind": "minimal_edit"}, block(more), 9, ROW)
    # The fix puts in `-` and writes 1 for 0; this one puts in `kept = items` and writes kept besides.
    assert [len(tokens_of(code)) for code in (FAULTY, FIX, more)] == [21, 22, 25]
    beyond = 6 / 25 - 2 / 22
    assert value == pytest.approx(1.0 - beyond)
    assert tried({"kind": "minimal_edit", "charge": 2.0}, block(more), 9, ROW) == pytest.approx(1.0 - 2.0 * beyond)
    rewritten = tried({"kind": "minimal_edit"}, block(REWRITTEN), 9, ROW)
    assert isinstance(value, float) and isinstance(rewritten, float) and rewritten < value


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("code", {}, "its row has no 'tests'"),
        ("code", {"tests": []}, "no list of cases"),
        ("minimal_edit", {"tests": TESTS}, "no program in 'given'"),
        ("minimal_edit", {"tests": TESTS, "given": FAULTY}, "no program in 'solution'"),
        ("minimal_edit", {"tests": TESTS, "given": "def", "solution": FIX}, "the row's given is no Python"),
    ],
)
def test_a_row_without_what_a_rule_needs_rejects_its_responses(
    isolated: None, kind: str, row: dict[str, Any], reason: str
) -> None:
    value = tried({"kind": kind}, block(FIX), 9, row)
    assert isinstance(value, Rejection) and reason in value.reason


def checked(rules: list[Rule], *rows: dict[str, Any]) -> list[str]:
    return check_tests(rules, [Sample("rows.jsonl", dict(enumerate(rows, 1)))])


def test_rows_are_read_before_a_run() -> None:
    code, repair = rule_of(kind="code"), rule_of(kind="minimal_edit")
    assert checked([code, repair], ROW) == []
    assert checked([rule_of(kind="length")], {}) == []
    assert check_tests([code], []) == []
    (warning,) = checked([code], ROW, {})
    assert warning.startswith("reward.rules.0.field: 1 of 2 rows of rows.jsonl lack 'tests', the first in line 2")
    with pytest.raises(RecipeError, match=r"reward.rules.0.field: no row of rows.jsonl has 'tests'"):
        checked([code], {})
    with pytest.raises(RecipeError, match=r"rows.jsonl line 2: tests: tests.0 needs input"):
        checked([code], ROW, {"tests": [{"input": "1"}]})
    with pytest.raises(RecipeError, match=r"rows.jsonl line 1: given: is no Python"):
        checked([repair], ROW | {"given": "def"})
    with pytest.raises(RecipeError, match=r"rows.jsonl line 1: solution: is no text"):
        checked([repair], ROW | {"solution": 3})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"wall_seconds": 20.0}, "wall_seconds 20 of one case exceed total_seconds 16"),
        ({"language": "rust"}, "python"),
        ({"code": "second_block"}, "last_block"),
        ({"memory_mib": 1}, "64"),
        ({"processes": 0}, "1"),
        ({"at_once": 0}, "1"),
        ({"tests": "x"}, "not permitted"),
    ],
)
def test_keys_that_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_of(kind="code", **keys)


def test_a_request_has_the_time_that_its_programs_may_take() -> None:
    assert rule_of(kind="code", at_once=4, total_seconds=10).longest(9) == 30.0
    assert rule_of(kind="length").longest(9) == 0.0 and rule_of(kind="maths", seconds=2).longest(9) == 18.0


def test_where_nothing_isolates_programs_they_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(isolation_module, "MECHANISMS", ())
    isolation.cache_clear()
    recipe = loaded({"reward.rules": [{"kind": "length"}, {"kind": "code"}]})
    with pytest.raises(RecipeError, match=r"reward.rules.1.kind: code: programs cannot be isolated here .*bubblewrap"):
        check_isolation(recipe)
    with pytest.raises(NoIsolation):
        Reward("/none", runs_programs=True).start()
    with pytest.raises(NoIsolation):
        tried({"kind": "code"}, block(FIX), 9, ROW)
    check_isolation(loaded({"reward.rules": [{"kind": "length"}]}))
    check_isolation(loaded({"reward.rules": [{"kind": "code"}], "cluster.address": "10.0.0.1:6379"}))
    isolation.cache_clear()


def test_the_examples_of_the_page_hold(isolated: None) -> None:
    page = section(ROOT / "docs" / "rewards.md", "Code and the sandbox")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    rules = loaded({"reward": yaml.safe_load(recipe)["reward"]}).reward.rules
    add, total = (json.loads(line) for line in re.findall(r"```jsonl\n(.*?)```", page, re.S)[0].splitlines())
    (sums, sums_of_input) = "def add(a, b): return a + b\n", "print(sum(map(int, input().split())))\n"
    for row, code, other in ((add, sums, sums_of_input), (total, sums_of_input, sums)):
        assert checked([*rules], row) == []
        texts = [block(code), block(other)]
        assert kind_of(rules[0]).values(rules[0], [Response(text, 9, row) for text in texts]) == [1.0, 0.0]
    published = rule_of(**yaml.safe_load(re.findall(r"`(\{kind: minimal_edit.*?\})`", page)[0]))
    assert published.weight * 1.0 == 0.1 and published.weight * published.failed == -0.2  # type: ignore[attr-defined]
