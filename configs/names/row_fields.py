"""Fields of a prompt row, by name or by a dotted path into nested fields: `reward_model.ground_truth`."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from configs.refusal import shown


def field_of(row: Mapping[str, Any], path: str) -> Any:
    """The value of a field; None where the row lacks it or it is null. A key with dots in its name comes before a path;
    a whole number in a path is an index of a list."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and len(part) < 10 and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def answer_of(row: Mapping[str, Any], path: str) -> str | None:
    """A field as text to compare a response with; None where the row lacks it. Raises ValueError for a mapping or a
    list."""
    value = field_of(row, path)
    if isinstance(value, Mapping):
        inside = next(iter(value), "...")
        raise ValueError(f"{path} is a mapping; name a field in it, e.g. {path}.{inside}")
    if isinstance(value, list):
        raise ValueError(f"{path} is a list; name a place in it, e.g. {path}.0")
    return None if value is None else str(value).strip()


class Template(string.Formatter):
    """A format string over the fields of a row, with dotted paths as in field_of; it reads no attributes of values."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        """Raises KeyError with the name where the row lacks the field."""
        name = field_name.replace("[", ".").replace("]", "")
        value = field_of(kwargs, name)
        if value is None:
            raise KeyError(field_name)
        return value, name

    def format_field(self, value: Any, format_spec: str) -> str:
        """Raises ValueError for a width of five digits or more, which would fill memory."""
        if re.search(r"\d{5}", format_spec):
            raise ValueError(f"{shown(format_spec)} is too wide; use at most 4 digits")
        return super().format_field(value, format_spec)

    def fill(self, template: str, row: Mapping[str, Any]) -> str:
        """Raises KeyError where the row lacks a field, ValueError where this is no format string."""
        try:
            return self.vformat(template, (), row)
        except (IndexError, AttributeError, TypeError, OverflowError) as error:
            raise ValueError(str(error)) from None
