"""Whether a claimed result is the expected one. Outside of the sandbox, on texts and plain JSON only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_NONE = object()


def same_value(expect: Any, claimed: str, tolerance: float) -> bool:
    """Whether JSON text says what is expected. False for text that is no JSON."""
    try:
        found = json.loads(claimed)
    except (ValueError, RecursionError):
        return False
    return same(expect, found, tolerance)


def same(expect: Any, found: Any, tolerance: float) -> bool:
    """Equal in type and value; a truth value equals no number, and an expected float is met within `tolerance`,
    relative or absolute. Descends as deep as `expect` goes."""
    if isinstance(expect, (bool, type(None))) or isinstance(found, (bool, type(None))):
        return expect is found
    if isinstance(expect, (int, float)) and isinstance(found, (int, float)):
        return expect == found or (isinstance(expect, float) and _close(expect, found, tolerance))
    if isinstance(expect, str) or isinstance(found, str):
        return isinstance(expect, str) and isinstance(found, str) and expect == found
    if isinstance(expect, Mapping) and isinstance(found, Mapping):
        return expect.keys() == found.keys() and all(same(v, found.get(k, _NONE), tolerance) for k, v in expect.items())
    if isinstance(expect, (list, tuple)) and isinstance(found, list):
        return len(expect) == len(found) and all(same(a, b, tolerance) for a, b in zip(expect, found, strict=True))
    return False


def same_output(expect: str, found: str, tolerance: float) -> bool:
    """Equal line by line, but for white space at the ends of lines and of the text; an expected number with a point or
    an exponent is met within `tolerance`."""
    wanted, lines = _lines(expect), _lines(found)
    return len(wanted) == len(lines) and all(_same_line(a, b, tolerance) for a, b in zip(wanted, lines, strict=True))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same_line(expect: str, found: str, tolerance: float) -> bool:
    if expect == found:
        return True
    words, others = expect.split(), found.split()
    if len(words) != len(others) or not any(_real(word) is not None for word in words):
        return False
    return all(a == b or _same_number(a, b, tolerance) for a, b in zip(words, others, strict=True))


def _same_number(expect: str, found: str, tolerance: float) -> bool:
    wanted = _real(expect)
    try:
        return wanted is not None and _close(wanted, float(found), tolerance)
    except (ValueError, OverflowError):
        return False


def _real(word: str) -> float | None:
    """A number that is written with a point or an exponent."""
    if not any(mark in word for mark in ".eE"):
        return None
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _close(expect: float, found: float, tolerance: float) -> bool:
    try:
        return math.isclose(expect, found, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an int beyond all floats
        return False
