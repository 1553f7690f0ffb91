"""Reads a text file that a user names: UTF-8 in every locale; never blocks on a pipe."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from configs.refusal import RecipeError, reason


def read_text(path: Path, remedy: str, at_most: int | None = None) -> str:
    """The text of a regular UTF-8 file of up to `at_most` bytes, without its byte-order mark.

    Raises RecipeError with `remedy` where the file is missing, unreadable, too long or no regular file.
    """
    regular_size(path, remedy, at_most)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({reason(error)}); {remedy}") from None
    except MemoryError:
        raise RecipeError(f"{path}: cannot be read (it does not fit into memory); {remedy}") from None
    return _decoded(path, content, remedy)


def regular_size(path: Path, remedy: str, at_most: int | None = None) -> int:
    """The size of a regular file, bytes. Raises RecipeError with `remedy` where it is missing, no regular file, or
    longer than `at_most`."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL, or one that no file can have
        raise RecipeError(f"{path}: cannot be read ({reason(error)}); {remedy}") from None
    if stat.S_ISDIR(found.st_mode):
        raise RecipeError(f"{path}: cannot be read (Is a directory); {remedy}")
    if not stat.S_ISREG(found.st_mode):
        raise RecipeError(f"{path}: cannot be read (it is a pipe or a device, no file); {remedy}")
    if at_most is not None and found.st_size > at_most:
        raise RecipeError(f"{path}: cannot be read ({found.st_size} bytes, {at_most} are the most); {remedy}")
    return found.st_size


def refuse_utf16(path: Path, beginning: bytes) -> None:
    """Raise RecipeError for a file that begins as UTF-16 does."""
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RecipeError(f"{path}: cannot be read (it is UTF-16); save it as UTF-8: iconv -f UTF-16 -t UTF-8")


def _decoded(path: Path, content: bytes, remedy: str) -> str:
    refuse_utf16(path, content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{path}: cannot be read (it is no UTF-8, from byte {error.start} in line {line} on); {remedy}"
        ) from None
