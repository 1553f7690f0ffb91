"""Prompt sets of rows that a test lists, instead of a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from configs.data import DataSet
from configs.refusal import RecipeError
from orchestrator.data.prompt_set import PromptSet
from orchestrator.data.prompting import Prompting
from orchestrator.data.rows import Rows
from orchestrator.data.sets import check_sets
from orchestrator.samples.prompts import Prompt
from orchestrator.samples.templates import Chat, Demonstrations


class Listed:
    """A table of rows; one that is text cannot be read, and the text is why. Counts how often rows were asked for."""

    name, unit = "p.jsonl", "line"

    def __init__(self, rows: Sequence[Mapping[str, Any] | str]) -> None:
        self.rows = rows
        self.asked = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Mapping[str, Any]:
        self.asked += 1
        row = self.rows[place]
        if isinstance(row, str):
            raise RecipeError(row)
        return row

    def number(self, place: int) -> int:
        return place + 1

    def weights(self, field: str) -> list[Any] | None:
        return None


def prompt_set(
    rows: Sequence[Mapping[str, Any] | str], prompting: Prompting, drops: bool = False, **entry: Any
) -> PromptSet:
    return PromptSet(
        Rows(Listed(rows), DataSet(path="p.jsonl", **entry), bool(prompting.demonstrations)), prompting, drops
    )


def tokenize(rows: Sequence[Mapping[str, Any]], chats: Mapping[str, Chat]) -> list[Prompt]:
    """The prompts of rows, checked as before a run."""
    prompting = Prompting(chats)
    prompting.check()
    return list(check_sets([prompt_set(rows, prompting)], prompting, ()).sets[0])


def demonstrated(
    rows: Sequence[Mapping[str, Any]], chat: Chat, ends: Collection[int]
) -> tuple[list[Prompt], list[str]]:
    """The prompts of rows with their responses, and warnings."""
    prompting = Prompting({"student": chat}, demonstrations=Demonstrations(chat, ends))
    prompting.check()
    read = check_sets([prompt_set(rows, prompting)], prompting, ())
    return list(read.sets[0]), list(read.warnings)
