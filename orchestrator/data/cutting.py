"""Cuts a prompt that is too long. The end of a prompt stays, since the question most often stands there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from configs.names.columns import MESSAGES, PROMPT

Row = Mapping[str, Any]


def cut(row: Row, fits: Callable[[Row], bool]) -> Row:
    """The row with a shorter prompt. Of a chat the oldest turns go first, whole and up to a user's turn, but not the
    system message; then, as of a prompt without a chat, the beginning of the last text. The shortest there is, where
    nothing fits."""
    for shorter in _later_turns(row):
        if fits(shorter):
            return shorter
        row = shorter
    return _last_characters(row, fits)


def _later_turns(row: Row) -> list[Row]:
    """The row with ever fewer of its turns."""
    turns = row.get(MESSAGES) or []
    system = turns[:1] if turns and turns[0]["role"] == "system" else []
    starts = [place for place, turn in enumerate(turns) if place > len(system) and turn["role"] == "user"]
    return [{**row, MESSAGES: [*system, *turns[start:]]} for start in starts]


def _last_characters(row: Row, fits: Callable[[Row], bool]) -> Row:
    """The row with the longest end of its text that fits, to a character."""
    text = row[PROMPT]
    least, most = 1, len(text)
    while least < most:
        middle = (least + most + 1) // 2
        if fits(_ending(row, text[-middle:])):
            least = middle
        else:
            most = middle - 1
    return _ending(row, text[-least:])


def _ending(row: Row, text: str) -> Row:
    turns = row.get(MESSAGES)
    return {**row, PROMPT: text} | ({MESSAGES: [*turns[:-1], {**turns[-1], "content": text}]} if turns else {})
