"""Reward of a final answer that is right as mathematics, by the library math-verify.

Its own timeouts are signals, which only a main thread may set, so they are off: the rule runs in a process apart, which
is ended when it is late.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from configs.names.row_fields import answer_of
from configs.reward_rules import MathsRule
from rewards.response import Response

_WRITTEN = ("$", "\\boxed", "\\(", "\\[")  # an answer with one of these says itself what in it is mathematics


def maths(rule: MathsRule, response: Response) -> float:
    """Whether the response's final answer (boxed, in dollars, or the last expression) equals the row's. Raises
    ValueError where the row's answer cannot be read."""
    expected = answer_of(response.row, rule.field)
    if expected is None:
        raise ValueError(f"its row has no {rule.field!r}")
    gold = _gold(expected)
    if not gold:
        raise ValueError(f"the row's {rule.field} {expected[:60]!r} cannot be read as mathematics")
    return float(_library().verify(gold, _parsed(response.text), timeout_seconds=None))


@lru_cache(maxsize=1)
def _library() -> Any:
    """The library, imported where it is first needed: it takes seconds. It would warn of the timeouts that are off."""
    import math_verify

    for part in ("parser", "grader"):
        logging.getLogger(f"math_verify.{part}").setLevel(logging.ERROR)
    return math_verify


def prepare(rule: MathsRule) -> None:
    """Import the library before any response waits for it."""
    _library()


@lru_cache(maxsize=4096)
def _gold(expected: str) -> list[Any]:
    """What an answer may be read as; empty where only its letters are left, which is no mathematics."""
    found = _parsed(expected if any(mark in expected for mark in _WRITTEN) else f"${expected}$") or _parsed(expected)
    return found if any(not isinstance(part, str) for part in found) else []


def _parsed(text: str) -> list[Any]:
    return _library().parse(text, parsing_timeout=None)
