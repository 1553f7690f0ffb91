"""A row as it is used: its columns under their own names, its chat split into prompt and response."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.data import DataSet
from configs.names.columns import MESSAGES, PROMPT, RESPONSE, SOURCE, WEIGHT
from configs.names.row_fields import field_of
from configs.refusal import RecipeError, shown
from orchestrator.data import chats
from orchestrator.data.files.table import Raw, Table, where


@dataclass(frozen=True)
class Rows:
    """The rows of one set. With `need_response` each must have one. Every row that it gives has text under `prompt`;
    one with a chat also has the turns before the response under `messages`."""

    table: Table
    entry: DataSet
    need_response: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Raises RecipeError, with file and number."""
        raw, at = self.table[place], self.where(place)
        row = dict(raw) | {column: field_of(raw, path) for column, path in self.entry.columns.items()}
        if self.entry.source and row.get(SOURCE) is None:
            row[SOURCE] = self.entry.source
        self._settle_chat(row, at)
        if not isinstance(row.get(PROMPT), str) or not row[PROMPT].strip():
            raise RecipeError(f'{at}: needs a non-empty "prompt"; found {self._found(raw)}')
        if self.need_response and (not isinstance(row.get(RESPONSE), str) or not row[RESPONSE]):
            raise RecipeError(f'{at}: prefix: dataset needs a "response" in each row')
        weight_of(row, at)
        return row

    def where(self, place: int) -> str:
        return where(self.table, place)

    @property
    def weight_field(self) -> str:
        return self.entry.columns.get(WEIGHT, WEIGHT)

    def _settle_chat(self, row: dict[str, Any], at: str) -> None:
        """Split a row's messages: `messages`, or a `prompt` that is a list of them."""
        chat = row.get(MESSAGES)
        if chat is None and isinstance(row.get(PROMPT), list):
            chat = row[PROMPT]
        if chat is None:
            row.pop(MESSAGES, None)
            return
        row[MESSAGES], response = chats.split(chats.turns(chat, at), at)
        row[PROMPT] = row[MESSAGES][-1]["content"]
        if row.get(RESPONSE) is None and response is not None:
            row[RESPONSE] = response

    def _found(self, raw: Raw) -> str:
        renamed = f"; data.columns reads it from {self.entry.columns[PROMPT]!r}" if PROMPT in self.entry.columns else ""
        return shown(json.dumps(raw, ensure_ascii=False, default=str), 60) + renamed


def weight_of(row: Mapping[str, Any], at: str) -> float:
    """How often a row is drawn, relative to others. Raises RecipeError."""
    value = row.get(WEIGHT)
    number = 1.0 if value is None else _number(value)
    if number is None or not math.isfinite(number) or number < 0:
        raise RecipeError(f"{at}: weight is {shown(value, 60)}; write a number from 0 on, or rename it: data.columns")
    return number


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
