"""Prompts: rows of a file, their token ids under every model, and their order in a run.

Prompts are tokenised here, once. Response tokens are scored behind any of them and never tokenised again.
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
ORDERS = 1_000_000  # places of epoch orders to cache, 8 bytes each; at least two epochs


@dataclass(frozen=True)
class Prompt:
    """A row, its prompt ids by model name, its response ids (end token included) if it has a response, and its line in
    the file."""

    row: Mapping[str, Any]
    ids: Mapping[str, list[int]]
    response_ids: list[int] | None
    line: int = 0


class Prompts(Protocol):
    """Prompts by group index."""

    def __getitem__(self, index: int, /) -> Prompt: ...


class PromptStream:
    """An endless sequence of prompts. Each epoch is a permutation by seed, so an index is the whole state. The orders
    of recent epochs are cached."""

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
    """Tokenise rows as prompts, without responses. Raises RecipeError if a row lacks a field of a model's prompt, or
    if a chat template rejects the messages."""
    for chat in chats.values():
        chat.check()
    return [
        Prompt(
            row=row,
            ids={
                name: chat.ids(chat.prompt(_messages(row, chat, f"{where} line {line}")))
                for name, chat in chats.items()
            },
            response_ids=None,
            line=line,
        )
        for line, row in rows.items()
    ]


def with_responses(
    prompts: Sequence[Prompt], student: Chat, end_token_ids: Collection[int], where: Path
) -> tuple[list[Prompt], list[str]]:
    """The prompts with the ids of their rows' responses, and warnings. Raises RecipeError if a response cannot end as
    generation ends."""
    demonstrations = Demonstrations(student, end_token_ids)
    whole: list[Prompt] = []
    altered: list[int] = []
    for prompt in prompts:
        at = f"{where} line {prompt.line}"
        messages = _messages(prompt.row, student, at)
        written = demonstrations.write(messages, prompt.row["response"], at)
        whole.append(replace(prompt, response_ids=written.ids))
        altered += [prompt.line] if written.altered else []
    return whole, _warnings(demonstrations, altered, len(whole), where)


def _warnings(demonstrations: Demonstrations, altered: Sequence[int], count: int, where: Path) -> list[str]:
    warnings: list[str] = []
    if demonstrations.opening:
        warnings.append(
            f"{where}: the student's chat template begins an assistant's message with {demonstrations.opening!r}; "
            "responses that do not begin with it are trained behind it"
        )
    if altered:
        warnings.append(
            f"{where}: the student's chat template would change {len(altered)} of {count} responses, the first in line "
            f"{altered[0]}; they are trained as the rows have them"
        )
    return warnings


def _messages(row: Mapping[str, Any], chat: Chat, where: str) -> list[dict[str, str]]:
    """The messages of a row's prompt under a model."""
    model = chat.model
    try:
        text = _TEMPLATE.fill(model.prompt, row)
    except KeyError as error:
        raise RecipeError(f"{where}: the model's prompt names the field {error}, which the row lacks") from None
    except ValueError as error:
        raise RecipeError(
            f"models: prompt {shown(model.prompt)} is no format string over a row's fields ({error})"
        ) from None
    return chat.messages(text)
