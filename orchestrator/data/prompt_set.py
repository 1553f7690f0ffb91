"""The prompts of one set, made when they are asked for."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

from configs.names.columns import WEIGHT
from configs.names.row_fields import field_of
from configs.refusal import RecipeError
from orchestrator.data.checks import Sample
from orchestrator.data.files.table import where
from orchestrator.data.prompting import Made, Prompting, TooLong
from orchestrator.data.rows import Rows, weight_of
from orchestrator.samples.prompts import Prompt

WHOLE = 10_000  # a set of up to as many rows is checked whole before a run starts
CHECKED = 2_000  # rows of a larger set that are
CACHED = 2**24  # tokens of prompts that stay in memory


@dataclass
class Checked:
    """What a look at a set's rows found: the rows, tokens of the longest prompt by model, the numbers of rows whose
    demonstration the student's chat template would write differently, and whether some row has a weight."""

    sample: Sample
    longest: dict[str, int] = field(default_factory=dict)
    altered: list[int] = field(default_factory=list)
    weighted: bool = False


class PromptSet(Sequence[Prompt]):
    """Prompts by place. A bounded number of them is kept; asking for another makes it anew. One that cannot be used
    raises RecipeError, and is `dropped`, by its file and number, with the reason.

    A set of up to WHOLE rows that was checked has only prompts that can be used.
    """

    def __init__(self, rows: Rows, prompting: Prompting, drops: bool = False) -> None:
        self._rows = rows
        self._prompting = prompting
        self._drops = drops
        self._places: Sequence[int] = range(len(rows))
        self._kept: OrderedDict[int, Prompt] = OrderedDict()
        self._tokens = 0
        self.dropped: dict[str, str] = {}
        self.weights: array[float] | None = None

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = self._places[index]
        if place in self._kept:
            self._kept.move_to_end(place)
            return _opened(self._kept[place])
        if reason := self.dropped.get(self._rows.where(place)):
            raise RecipeError(reason)
        try:
            return self._make(place).prompt
        except RecipeError as error:
            self.dropped[self._rows.where(place)] = str(error)
            raise

    @property
    def whole(self) -> bool:
        """Whether a check looks at every row."""
        return len(self._rows) <= WHOLE

    def check(self) -> Checked:
        """Look at the rows, or at CHECKED of them, evenly spread. Raises RecipeError for one that cannot be used; one
        that is too long is dropped where the recipe says so, and refused if all are."""
        table, numbered = self._rows.table, {}
        found = Checked(Sample(table.name, numbered, table.unit))
        usable: list[int] = []
        for place in spread(len(self._rows), WHOLE if self.whole else CHECKED):
            try:
                made = self._make(place)
            except TooLong as error:
                if not self._drops:
                    raise
                self.dropped[self._rows.where(place)] = str(error)
                continue
            usable.append(place)
            self._note(found, made, numbered)
        if not usable:
            raise RecipeError(f"{table.name}: no prompt fits: {next(iter(self.dropped.values()))}")
        if self.whole and len(usable) < len(self._rows):
            self._places = array("l", usable)
        self.weights = self._weights(found, usable)
        return found

    def _note(self, found: Checked, made: Made, numbered: dict[int, Mapping[str, object]]) -> None:
        prompt = made.prompt
        numbered[prompt.line] = prompt.row
        found.weighted |= prompt.row.get(WEIGHT) is not None
        found.altered += [prompt.line] if made.altered else []
        for name, ids in prompt.ids.items():
            found.longest[name] = max(found.longest.get(name, 0), len(ids))

    def _make(self, place: int) -> Made:
        number = self._rows.table.number(place)
        made = self._prompting.make(self._rows[place], self._rows.where(place), number)
        self._keep(place, made.prompt)
        return made

    def _keep(self, place: int, prompt: Prompt) -> None:
        self._kept[place] = _packed(prompt)
        self._tokens += _size(prompt)
        while self._tokens > CACHED and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._tokens -= _size(oldest)

    def _weights(self, found: Checked, usable: Sequence[int]) -> array[float] | None:
        """A weight a prompt; None where all are alike. Raises RecipeError."""
        values = self._weight_values(found, usable)
        if values is None or all(value is None for value in values):
            return None
        name, unit = self._rows.table.name, self._rows.table.unit
        places = zip(self._places, values, strict=True)
        weights = array("d", (weight_of({WEIGHT: value}, where(self._rows.table, place)) for place, value in places))
        if not any(weights):
            raise RecipeError(f"{name}: the weights of all {unit}s are 0; give one of them a weight")
        return weights

    def _weight_values(self, found: Checked, usable: Sequence[int]) -> list[object] | None:
        table = self._rows.table
        if self.whole:
            return [found.sample.rows[table.number(place)].get(WEIGHT) for place in usable]
        if (column := table.weights(self._rows.weight_field)) is not None:
            return column
        return [self._weight_at(place) for place in range(len(self._rows))] if found.weighted else None

    def _weight_at(self, place: int) -> object:
        """A row's weight; 0 for a row that cannot be read, which is left out when it is met."""
        try:
            return field_of(self._rows.table[place], self._rows.weight_field)
        except RecipeError:
            return 0


def spread(count: int, most: int) -> Sequence[int]:
    """Up to `most` of `count` places, evenly spread, the first and the last among them."""
    if count <= most:
        return range(count)
    return [place * (count - 1) // (most - 1) for place in range(most)]


def _size(prompt: Prompt) -> int:
    """What a prompt takes in memory, in tokens of 4 bytes."""
    letters = sum(len(value) for value in prompt.row.values() if isinstance(value, str))
    return sum(map(len, prompt.ids.values())) + len(prompt.response_ids or ()) + letters // 4


def _packed(prompt: Prompt) -> Prompt:
    """A prompt with 4 bytes a token instead of an object."""
    ids = {name: array("i", tokens) for name, tokens in prompt.ids.items()}
    response = prompt.response_ids
    return replace(prompt, ids=ids, response_ids=None if response is None else array("i", response))


def _opened(prompt: Prompt) -> Prompt:
    ids = {name: list(tokens) for name, tokens in prompt.ids.items()}
    response = prompt.response_ids
    return replace(prompt, ids=ids, response_ids=None if response is None else list(response))
