"""JSON lines, read one at a time: of the whole file only the places of its lines are in memory, 16 bytes each.

Not through Arrow, whose columns have one type each: a row keeps the fields and types that its line has.
"""

from __future__ import annotations

import codecs
import json
import os
from array import array
from pathlib import Path
from typing import Any, NoReturn

from configs.reading.text_file import read_text, refuse_utf16, regular_size
from configs.refusal import RecipeError, reason, shortened, shown

WHOLE = 2**26  # bytes; a file up to this size is looked at as a whole before it is read by line
_REMEDY = "give a file of JSON lines, Parquet, CSV or a saved data set in data.prompts and data.heldout"


class JsonLines:
    """The rows of a JSON-lines file. Raises RecipeError for a file that holds none."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        size = regular_size(path, _REMEDY)
        if size <= WHOLE:
            _refuse_one_value(path, read_text(path, _REMEDY))
        try:
            self._file = open(path, "rb", buffering=2**20)  # noqa: SIM115 - open as long as its rows may be asked for
            refuse_utf16(path, self._file.read(4))
            self._index()
        except (OSError, MemoryError) as error:
            raise RecipeError(f"{path}: cannot be read ({reason(error)}); {_REMEDY}") from None
        if not self._starts:
            raise RecipeError(f'{path}: prompt file is empty; give at least one line {{"prompt": "..."}}')

    def _index(self) -> None:
        """Note where each line starts that is not blank, and its number."""
        self._starts, self._numbers, at = array("q"), array("q"), 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
            if line[mark:].strip():
                self._starts.append(at + mark)
                self._numbers.append(number)
            at += len(line)
        self._end = at

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, place: int) -> int:
        return self._numbers[place]

    def __getitem__(self, place: int) -> dict[str, Any]:
        end = self._starts[place + 1] if place + 1 < len(self) else self._end
        at = f"{self.name} line {self.number(place)}"
        try:
            content = os.pread(self._file.fileno(), end - self._starts[place], self._starts[place])
            return _parsed(at, content.partition(b"\n")[0].decode())
        except UnicodeDecodeError:
            raise RecipeError(f"{at}: is no UTF-8; save the file as UTF-8") from None
        except OSError as error:
            raise RecipeError(f"{at}: cannot be read ({reason(error)}); leave the file as it is during a run") from None

    def weights(self, field: str) -> list[Any] | None:
        return None


def _refuse_one_value(path: Path, text: str) -> None:
    """Refuse a file that is one JSON value, as other tools write it. A file of lines with one bad line passes."""
    start = text.lstrip()[:1]
    if start not in ("[", "{") or (start == "{" and text.strip().split("\n", 1)[0].rstrip().endswith("}")):
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # not one value, so lines
        return
    kind = "array" if isinstance(value, list) else "object over several lines"
    query = ".[]" if isinstance(value, list) else "."
    raise RecipeError(f"{path}: is one JSON {kind}; write an object a line: jq -c '{query}' {path} > prompts.jsonl")


def _parsed(where: str, line: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise RecipeError(f"{where}: the key {shown(twice)} stands twice; remove one of them")
        return row

    def finite(word: str) -> NoReturn:
        raise RecipeError(f"{where}: {word} is no JSON; write a number, or null")

    try:
        row = json.loads(line, object_pairs_hook=once, parse_constant=finite)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{where}: is no JSON ({error.msg}); write one object a line") from None
    except ValueError as error:
        raise RecipeError(f"{where}: is JSON that cannot be read ({error}); quote the number") from None
    except RecursionError:
        raise RecipeError(f"{where}: is nested too deeply; flatten it") from None
    if "\\u" in line:
        _refuse_half_characters(where, row)
    if not isinstance(row, dict):
        raise RecipeError(f'{where}: needs a non-empty "prompt"; found {shown(line.strip(), 60)}')
    return row


def _refuse_half_characters(where: str, row: Any) -> None:
    """Refuse half of a surrogate pair: JSON can spell it, but it is no character, so no tokenizer takes it."""
    written = json.dumps(row, ensure_ascii=False)
    try:
        written.encode()
    except UnicodeEncodeError as error:
        found = written[max(0, error.start - 20) : error.end]
        raise RecipeError(
            f"{where}: {shortened(found)!r} ends in half a surrogate pair, which is no character; write both halves, "
            "or remove it"
        ) from None
