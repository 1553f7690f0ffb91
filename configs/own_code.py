"""A user's own code, named in a recipe as `package.module:name`."""

from __future__ import annotations

import importlib
import re
from typing import Any

from pydantic import AfterValidator

PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def or_own(*known: str) -> AfterValidator:
    """A validator of a string: one of `known`, or the name of a user's own code."""

    def check(value: str) -> str:
        if value not in known and not is_own(value):
            named = ", ".join(repr(name) for name in known)
            raise ValueError(f"input should be {named} or code of your own, package.module:name")
        return value

    return AfterValidator(check)


def is_own(name: str) -> bool:
    """Whether `name` names a user's own code, and no built-in."""
    return re.match(PATTERN, name) is not None


def imported(name: str) -> Any:
    """The function or class that `package.module:name` names. Raises whatever its import raises."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
