"""What bad input comes to: RecipeError, in lines that stay lines whatever stands in a file, a name or a value."""

from __future__ import annotations

from typing import Any

LONGEST = 160  # characters of a value, or of a library's reason, that are worth reading


class RecipeError(Exception):
    """Bad input, in one line that joins its findings, or in a line each: the path, the value and the remedy. Commands
    turn it into exit code 2. What would break or colour a line is escaped."""

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(printable(line) for line in lines)
        super().__init__("\n".join(self.lines))


def printable(text: str) -> str:
    """The text with line breaks, control characters and half surrogate pairs as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any, longest: int = LONGEST) -> str:
    """A value as Python writes it, cut where it is long."""
    return shortened(repr(value), longest)


def shortened(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def reason(error: BaseException) -> str:
    """What a library's exception says, in a line: the first that says something, else the exception's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(lines[0]) if lines else type(error).__name__
