"""Runs a program on a row's cases and compares what it claims, here and not in the sandbox, with what is expected."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from rewards.sandbox.cases import Case
from rewards.sandbox.compare import same_output, same_value
from rewards.sandbox.limits import Limits
from rewards.sandbox.mechanisms import Mechanism
from rewards.sandbox.run import Ending, run


@dataclass(frozen=True)
class Grade:
    """How many of `cases` passed, and why the first of the others did not."""

    passed: int
    cases: int
    reason: str = ""

    @property
    def share(self) -> float:
        return self.passed / self.cases

    @property
    def whole(self) -> bool:
        return self.passed == self.cases


def grade(
    mechanism: Mechanism, program: str, cases: Sequence[Case], limits: Limits, tolerance: float, all_cases: bool
) -> Grade:
    """`all_cases` goes on after one has failed. Raises SandboxError if the sandbox does not start."""
    passed, reason = 0, ""
    with closing(run(mechanism, program, [case.given for case in cases], limits)) as endings:
        for number, (case, ending) in enumerate(zip(cases, endings, strict=True)):
            fault = fault_of(case, ending, tolerance)
            passed += not fault
            reason = reason or (fault and f"case {number}: {fault}")
            if fault and not all_cases:
                break
    return Grade(passed, len(cases), reason)


_ENDINGS = {
    "signal": "it crashed",
    "cpu": "it used up its CPU time",
    "wall": "it was too slow",
    "output": "it printed too much",
    "total": "no time was left for it",
    "gone": "the sandbox ended with it",
}


def fault_of(case: Case, ending: Ending, tolerance: float) -> str:
    """Why a case failed; empty if it passed."""
    if ending.end != "exit":
        return _ENDINGS[ending.end]
    if ending.code != 0:
        return f"it ended with {ending.code} ({(ending.stderr.strip().splitlines() or [''])[-1][:200]})"
    if case.call is None:
        return "" if same_output(case.expect, ending.stdout, tolerance) else "it printed something else"
    if not ending.value:
        return "it ended before the call gave a value"
    return "" if same_value(case.expect, ending.value, tolerance) else "the call gave something else"
