"""RecipeError, for bad input: printable lines, whatever characters a file, a name or a value has."""

from __future__ import annotations

from typing import Any

LONGEST = 160  # characters shown of a value or of a library's message


class RecipeError(Exception):
    """Bad input: one line that joins its findings, or a line each, with path, value and remedy. Commands exit with 2.
    Characters that would break or colour a line are escaped."""

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(printable(line) for line in lines)
        super().__init__("\n".join(self.lines))


def printable(text: str) -> str:
    """The text with line breaks, control characters and lone surrogates escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any, longest: int = LONGEST) -> str:
    """The repr of a value, cut at `longest` characters."""
    return shortened(repr(value), longest)


def shortened(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def reason(error: BaseException) -> str:
    """The first non-empty line of an exception's message, else the exception's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(lines[0]) if lines else type(error).__name__
