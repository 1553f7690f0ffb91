"""Reward of a program by the tests of its row. The program runs in a sandbox (`sandbox/`), never in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from configs.names.row_fields import field_of
from configs.reward_rules import CodeRule, ProgramRule
from rewards.response import Response, Reward, Value, singly
from rewards.sandbox.cases import Case, read_cases
from rewards.sandbox.extract import code_in
from rewards.sandbox.grade import Grade, grade
from rewards.sandbox.isolation import isolation
from rewards.sandbox.limits import Limits


def tested(value: Callable[[Any, Response], float]) -> Reward:
    """A reward of many responses from one of a single response, `at_once` of them at a time. Raises NoIsolation where
    programs cannot be isolated: then nothing runs."""

    def values(rule: ProgramRule, responses: Sequence[Response]) -> list[Value]:
        isolation()
        with ThreadPoolExecutor(rule.at_once) as pool:
            return [found[0] for found in pool.map(lambda one: singly(value)(rule, [one]), responses)]

    return values


def code(rule: CodeRule, response: Response) -> float:
    """1 for a program that passes all tests, else 0; with `partial` the share that it passes. 0 for a response without
    code. Raises ValueError for a row whose tests cannot be read."""
    found = graded(rule, response, all_cases=rule.partial)
    return found.share if rule.partial else float(found.whole)


def graded(rule: ProgramRule, response: Response, all_cases: bool = False) -> Grade:
    """The grade of a response's program. `all_cases` goes on after one has failed."""
    cases = _cases(rule, response)
    program = code_in(response.text, rule.code)
    if program is None:
        return Grade(0, len(cases), "it has no code")
    return grade(isolation(), program, cases, _limits(rule), rule.tolerance, all_cases)


def _cases(rule: ProgramRule, response: Response) -> list[Case]:
    tests = field_of(response.row, rule.field)
    if tests is None:
        raise ValueError(f"its row has no {rule.field!r}")
    return read_cases(tests)


def _limits(rule: ProgramRule) -> Limits:
    return Limits(
        cpu_seconds=rule.cpu_seconds,
        wall_seconds=rule.wall_seconds,
        total_seconds=rule.total_seconds,
        memory_mib=rule.memory_mib,
        processes=rule.processes,
    )
