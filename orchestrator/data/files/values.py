"""Values of Arrow columns as the plain values that JSON has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any


def plain(value: Any) -> Any:
    """Text, numbers, truth values, null, lists and mappings of them. A not-a-number is null, since tools that know no
    null write it; dates and decimals are text. Raises ValueError for what has no such form."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(value.tolist())
    raise ValueError(f"holds a {type(value).__name__}, which is no text or number; leave that column out")


def _number(value: float) -> float | None:
    if math.isinf(value):
        raise ValueError("holds an infinite number; write a number, or null")
    return None if math.isnan(value) else value


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError("holds bytes that are no UTF-8; leave that column out, or save it as text") from None
