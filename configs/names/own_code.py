"""A user's own code, named in a recipe as `package.module:name`, or as `file.py:name` where a key allows files."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
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


def is_code(name: str) -> bool:
    """Whether `name` is `package.module:name` or `file.py:name`."""
    return is_own(name) or re.match(r"^.+\.py:[A-Za-z_]\w*$", name) is not None


def imported(name: str) -> Any:
    """The function or class that `package.module:name` or `file.py:name` names. Raises whatever its import raises."""
    module, _, attribute = name.rpartition(":")
    return getattr(_of_file(Path(module)) if module.endswith(".py") else importlib.import_module(module), attribute)


def _of_file(file: Path) -> Any:
    """The module in a file, run anew; it finds the modules beside it. Raises FileNotFoundError without a file."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None, "a name that ends in .py has a loader"
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)  # for classes that look up their own module; no built-in is replaced
    spec.loader.exec_module(module)
    return module
