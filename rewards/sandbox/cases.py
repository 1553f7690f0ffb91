"""A row's `tests`: what a program is given, and what is expected of it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FORM = '[{"input": "1 2\\n", "output": "3\\n"}, ...] or [{"call": "add(1, 2)", "expect": 3}, ...]'


@dataclass(frozen=True)
class Case:
    """With `call` an expression whose value is compared with `expect`; else `expect` is what the program prints when it
    reads `input`."""

    input: str
    call: str | None
    expect: Any

    @property
    def given(self) -> dict[str, str]:
        """What goes into the sandbox: never `expect`."""
        return {"input": self.input} if self.call is None else {"call": self.call}


def read_cases(tests: Any) -> list[Case]:
    """Cases of a row's field, which may be JSON text, as tables hold it. Raises ValueError with the remedy."""
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except (ValueError, RecursionError):
            raise ValueError(f"tests are no JSON; write {_FORM}") from None
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise ValueError(f"tests are no list of cases; write {_FORM}")
    return [_case(i, case) for i, case in enumerate(tests)]


def _case(number: int, case: Any) -> Case:
    if not isinstance(case, Mapping):
        raise ValueError(f"tests.{number} is no mapping; write {_FORM}")
    given = {key: value for key, value in case.items() if value is not None}  # tables fill up with null
    if "call" in given and "expect" in case and {"call", "expect"}.issuperset(given):
        return Case("", _expression(number, given["call"]), case["expect"])
    if "output" in given and {"input", "output"}.issuperset(given):
        texts = given.get("input", ""), given["output"]
        if all(isinstance(text, str) for text in texts):
            return Case(texts[0], None, texts[1])
    raise ValueError(
        f"tests.{number} needs input and output (texts), or call and expect, and no other key; write {_FORM}"
    )


def _expression(number: int, call: Any) -> str:
    try:
        ast.parse(call.strip(), mode="eval")
    except (AttributeError, SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"tests.{number}.call {str(call)[:60]!r} is no expression; write e.g. add(1, 2)") from None
    return call
