"""RecipeError, for bad input: printable lines, whatever characters a file, a name or a value has."""

from __future__ import annotations

from pathlib import Path
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


def looked_at(path: Path, key: str = "") -> Path:
    """The path. Raises RecipeError, which names the recipe's `key`, where the system cannot say whether the path is
    there: its folder is closed to this user, or its name is too long."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        at = f"{key}: " if key else ""
        raise RecipeError(
            f"{at}{shortened(str(path))}: cannot be looked at ({reason(error)}); name a folder that is open to you"
        ) from None
    return path
