"""The corpus of faulty functions: made anew it is the same, its fixes pass their tests, its faults fail them."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from rewards.response import Response
from rewards.sandbox.compare import same
from rewards.sandbox.isolation import NoIsolation, isolation
from rewards.table import kind_of
from scripts.repairs.__main__ import FILES, FOLDER, HELDOUT, ROWS, SEED
from scripts.repairs.corpus import CASES, block, outcomes, rows, write
from scripts.repairs.faults import KINDS, faults, with_fault
from tests.unit.rewards.tried import rule_of

TRAIN, HELD_OUT = ([json.loads(line) for line in (FOLDER / file).read_text().splitlines()] for file in FILES)
EVERY = [*TRAIN, *HELD_OUT]


def passed(code: str, row: dict[str, Any]) -> list[bool]:
    """In this process: the code is ours, and no fault makes a loop endless."""
    found = outcomes(code, [case["call"] for case in row["tests"]])
    return [same(case["expect"], found[case["call"]], 0.0) for case in row["tests"]]


def test_the_files_are_what_the_seed_gives() -> None:
    assert write(ROWS, HELDOUT, SEED) == tuple((FOLDER / file).read_text() for file in FILES)
    assert rows(4, 1) != rows(4, 2)


def test_every_fix_passes_and_every_fault_fails() -> None:
    for row in EVERY:
        assert len(row["tests"]) == CASES
        assert all(passed(row["solution"], row)), row["solution"]
        assert not all(passed(row["given"], row)), row["given"]
        assert row["prompt"].endswith(block(row["given"])) and row["response"] == block(row["solution"])


def test_no_held_out_code_is_trained_on_and_all_kinds_of_faults_are_there() -> None:
    assert len({row["given"] for row in EVERY}) == ROWS + HELDOUT
    assert {row["fault"] for row in TRAIN} == set(KINDS)
    assert {row["function"] for row in TRAIN} == {row["function"] for row in HELD_OUT}


def test_more_rows_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.repairs.corpus._row", lambda *drawn: {"given": "x"})
    monkeypatch.setattr("scripts.repairs.corpus.FUNCTIONS", [None])
    with pytest.raises(ValueError, match="3 rows were asked for, and there are about 1"):
        rows(3, 0)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x < y", {"x <= y", "x > y"}),
        ("range(n)", {"range(n - 1)"}),
        ("x[-1]", {"x[1]", "x[-2]", "x[-0]"}),
        ("a and b", {"a or b"}),
        ("max(x)", {"min(x)"}),
        ("x.upper()", {"x.lower()"}),
        ("f(True)", {"f(False)"}),
        ("if a:\n    b", {"if not a:\n    b"}),
        ("x = y", set()),
    ],
)
def test_each_fault_changes_one_node(code: str, expected: set[str]) -> None:
    tree = ast.parse(code)
    assert {with_fault(tree, fault).strip() for fault in faults(tree)} == expected
    assert ast.unparse(tree) == code, "the tree itself stays"


def rewards(part: list[dict[str, Any]], field: str) -> list[Any]:
    """In the sandbox, as a run does."""
    try:
        isolation()
    except NoIsolation as reason:
        pytest.skip(str(reason))
    rule = rule_of(kind="minimal_edit")
    return list(kind_of(rule).values(rule, [Response(block(row[field]), 9, row) for row in part]))


def test_some_are_rewarded_in_the_sandbox() -> None:
    assert rewards(EVERY[::40], "solution") == [1.0] * 8
    assert rewards(EVERY[::40], "given") == [0.0] * 8


@pytest.mark.acceptance  # a minute
def test_all_are_rewarded_in_the_sandbox() -> None:
    assert rewards(EVERY, "solution") == [1.0] * len(EVERY)
    assert rewards(EVERY, "given") == [0.0] * len(EVERY)
