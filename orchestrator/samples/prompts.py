"""Where prompts come from: rows of a file, their token ids under every model, and the order of a run.

Tokenised once, here; the same response tokens are later scored behind any of these prompts and never tokenised again.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from configs.refusal import RecipeError, shown
from configs.row_fields import Template
from orchestrator.samples.rows import Rows
from orchestrator.samples.templates import Chat, Demonstrations

_TEMPLATE = Template()
ORDERS = 1_000_000  # places of epochs' orders that are kept, 8 bytes each; of two epochs at least


@dataclass(frozen=True)
class Prompt:
    """A row, its prompt ids by model name, its response ids where the dataset has one (end token included), and its
    line in the file."""

    row: Mapping[str, Any]
    ids: Mapping[str, list[int]]
    response_ids: list[int] | None
    line: int = 0


class Prompts(Protocol):
    """Prompts by the index of their group."""

    def __getitem__(self, index: int, /) -> Prompt: ...


class PromptStream:
    """An endless sequence of prompts: every epoch is a permutation by seed, so a position is the whole state.

    The orders of the last epochs that were asked for are kept: a retry of an old one shuffles nothing.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, shuffle: bool) -> None:
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle
        self._order = lru_cache(maxsize=max(2, ORDERS // max(1, len(prompts))))(self._shuffled)

    def __getitem__(self, index: int) -> Prompt:
        epoch, place = divmod(index, len(self._prompts))
        return self._prompts[self._order(epoch)[place]]

    def _shuffled(self, epoch: int) -> array[int]:
        order = array("l", range(len(self._prompts)))
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order


def tokenize(rows: Rows, chats: Mapping[str, Chat], where: Path) -> list[Prompt]:
    """Rows -> prompts, without their responses. Raises RecipeError when a row lacks a field that a model's prompt
    names, and where a model's chat template does not take the turns."""
    for chat in chats.values():
        chat.check()
    return [
        Prompt(
            row=row,
            ids={
                name: chat.ids(chat.prompt(_turns(row, chat, f"{where} line {line}"))) for name, chat in chats.items()
            },
            response_ids=None,
            line=line,
        )
        for line, row in rows.items()
    ]


def with_responses(
    prompts: Sequence[Prompt], student: Chat, end_token_ids: Collection[int], where: Path
) -> tuple[list[Prompt], list[str]]:
    """The prompts with the ids of their rows' responses, and what is worth a warning. Raises RecipeError where a
    response cannot be ended as generation ends."""
    demonstrations = Demonstrations(student, end_token_ids)
    whole: list[Prompt] = []
    altered: list[int] = []
    for prompt in prompts:
        at = f"{where} line {prompt.line}"
        turns = _turns(prompt.row, student, at)
        answer = demonstrations.answer(turns, prompt.row["response"], at)
        whole.append(replace(prompt, response_ids=answer.ids))
        altered += [prompt.line] if answer.altered else []
    return whole, _said(demonstrations, altered, len(whole), where)


def _said(demonstrations: Demonstrations, altered: Sequence[int], count: int, where: Path) -> list[str]:
    said: list[str] = []
    if demonstrations.lead:
        said.append(
            f"{where}: the student's chat template begins an assistant's turn with {demonstrations.lead!r}; responses "
            "that do not bring it themselves are trained behind it"
        )
    if altered:
        said.append(
            f"{where}: the student's chat template would write {len(altered)} of {count} responses otherwise, the "
            f"first in line {altered[0]}; they are trained as the rows have them"
        )
    return said


def _turns(row: Mapping[str, Any], chat: Chat, where: str) -> list[dict[str, str]]:
    """The turns of a row's prompt under a model."""
    model = chat.model
    try:
        text = _TEMPLATE.fill(model.prompt, row)
    except KeyError as error:
        raise RecipeError(f"{where}: the model's prompt names the field {error}, which the row lacks") from None
    except ValueError as error:
        raise RecipeError(
            f"models: prompt {shown(model.prompt)} is no format string over a row's fields ({error})"
        ) from None
    return chat.turns(text)
