"""The keys of the data: which files prompts come from, and how their columns are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from configs.names.columns import COLUMNS
from configs.node import Node

Columns = dict[str, str]


def _known(columns: Columns) -> Columns:
    """The mapping, if it renames to columns that there are."""
    if unknown := sorted(columns.keys() - COLUMNS.keys()):
        raise ValueError(f"{', '.join(unknown)}: is no column; use one of {', '.join(COLUMNS)}")
    return columns


class DataSet(Node):
    """One entry of a mixture. `weight`: its share of the prompt groups, relative to the other entries. `source`: put
    into the column `source` of rows that have none. `split`: of a saved data set or one on the Hub. `columns` go before
    those of the whole mixture."""

    path: str
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    source: str | None = None
    split: str | None = None
    columns: Columns = Field(default_factory=dict)

    _columns_are_known = field_validator("columns")(_known)


def _kind_of_prompts(value: Any) -> str:
    return "mixture" if isinstance(value, list | tuple) else "path"


Prompts = Annotated[
    Annotated[str, Tag("path")] | Annotated[tuple[DataSet, ...], Tag("mixture"), Field(min_length=1)],
    Discriminator(_kind_of_prompts),
]


class Data(Node):
    """Where prompts come from: a file, a saved data set, a name on the Hub, or a mixture of them. `columns` maps
    columns to the fields of the rows that hold them. `too_long`: what becomes of a prompt that leaves no room for its
    response.

    `responses`: the folder that keeps a teacher's responses under `prefix: teacher`; null: in the user's cache.
    """

    prompts: Prompts
    heldout: str | None = None
    columns: Columns = Field(default_factory=dict)
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    shuffle: bool = True
    responses: str | None = None

    _columns_are_known = field_validator("columns")(_known)

    @property
    def sets(self) -> tuple[DataSet, ...]:
        """The training prompts as a mixture, each entry with all of its columns."""
        return tuple(self._with_columns(DataSet(path=e) if isinstance(e, str) else e) for e in self._entries)

    @property
    def heldout_set(self) -> DataSet | None:
        return self._with_columns(DataSet(path=self.heldout)) if self.heldout is not None else None

    @property
    def _entries(self) -> tuple[str | DataSet, ...]:
        return (self.prompts,) if isinstance(self.prompts, str) else self.prompts

    def _with_columns(self, entry: DataSet) -> DataSet:
        columns: Mapping[str, str] = self.columns | entry.columns
        return entry.model_copy(update={"columns": dict(columns)})
