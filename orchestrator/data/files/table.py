"""What a file of rows is to the rest of the room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Raw = Mapping[str, Any]


class Table(Protocol):
    """Rows by place, from 0. `name` and `unit` are words of refusals: `p.jsonl` has lines, `p.parquet` rows."""

    name: str
    unit: str

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Raw:
        """One row, as plain values. Raises RecipeError with its file and number."""
        ...

    def number(self, place: int, /) -> int:
        """The number of a row in its file, from 1."""
        ...

    def weights(self, field: str, /) -> list[Any] | None:
        """The values of a field over all rows; None where this would take as long as reading all of them."""
        ...


def where(table: Table, place: int) -> str:
    """The words for a row: `p.jsonl line 3`."""
    return f"{table.name} {table.unit} {table.number(place)}"
