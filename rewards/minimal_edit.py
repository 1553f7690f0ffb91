"""Reward of a repair: it must pass the tests of its row, and pays for what it changes beyond the reference fix."""

from __future__ import annotations

from configs.names.row_fields import field_of
from configs.reward_rules import MinimalEditRule
from rewards.code import graded
from rewards.edit_distance import excess, tokens_of
from rewards.response import Response
from rewards.sandbox.extract import code_in


def minimal_edit(rule: MinimalEditRule, response: Response) -> float:
    """1 - charge x excess of a program that passes all tests, at most 1; `failed` of any other. Raises ValueError for a
    row whose tests, given code or reference cannot be read."""
    given, reference = (_program(response, field) for field in (rule.given, rule.reference))
    if not graded(rule, response).whole:
        return rule.failed
    output = code_in(response.text, rule.code) or ""
    return 1.0 - rule.charge * max(0.0, excess(output, given, reference))


def _program(response: Response, field: str) -> str:
    """A program of the row. Raises ValueError."""
    source = field_of(response.row, field)
    if not isinstance(source, str):
        raise ValueError(f"its row has no program in {field!r}")
    try:
        tokens_of(source)
    except ValueError as error:
        raise ValueError(f"the row's {field} {error}") from None
    return source
