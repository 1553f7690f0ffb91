"""Where prompts come from: rows of a file, their token ids under every model, and the order of a run.

Tokenised once, here; the same response tokens are later scored behind any of these prompts and never tokenised again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.load import RecipeError
from orchestrator.templates import Chat, Demonstrations


@dataclass(frozen=True)
class Prompt:
    """A row, its prompt ids by model name, and its response ids where the dataset has one (end token included)."""

    row: Mapping[str, Any]
    ids: Mapping[str, list[int]]
    response_ids: list[int] | None


class PromptStream:
    """An endless sequence of prompts: every epoch is a permutation by seed, so a position is the whole state."""

    def __init__(self, prompts: Sequence[Prompt], seed: int, shuffle: bool) -> None:
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, index: int) -> Prompt:
        epoch, place = divmod(index, len(self._prompts))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self._prompts)))
            if self._shuffle:
                random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
        return self._prompts[self._order[place]]


def read_rows(path: Path, need_response: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file. Raises RecipeError naming the file, the line and the remedy."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: prompt file cannot be read ({error}); check data.prompts and data.heldout"
        ) from None
    rows = [_row(path, number, line, need_response) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise RecipeError(f'{path}: prompt file is empty; give at least one line {{"prompt": "..."}}')
    return rows


def tokenize(rows: Sequence[Mapping[str, Any]], chats: Mapping[str, Chat], where: Path) -> list[Prompt]:
    """Rows -> prompts, without their responses. Raises RecipeError when a row lacks a field that a model's prompt
    names, and where a model's chat template does not take the turns."""
    for chat in chats.values():
        chat.check()
    return [
        Prompt(
            row=row,
            ids={name: chat.ids(chat.prompt(_turns(row, chat, f"{where} row {i}"))) for name, chat in chats.items()},
            response_ids=None,
        )
        for i, row in enumerate(rows, 1)
    ]


def with_responses(
    prompts: Sequence[Prompt], student: Chat, end_token_ids: Collection[int], where: Path
) -> tuple[list[Prompt], list[str]]:
    """The prompts with the ids of their rows' responses, and what is worth a warning. Raises RecipeError where a
    response cannot be ended as generation ends."""
    demonstrations = Demonstrations(student, end_token_ids)
    whole: list[Prompt] = []
    altered: list[int] = []
    for i, prompt in enumerate(prompts, 1):
        turns = _turns(prompt.row, student, f"{where} row {i}")
        answer = demonstrations.answer(turns, prompt.row["response"], f"{where} row {i}")
        whole.append(replace(prompt, response_ids=answer.ids))
        altered += [i] if answer.altered else []
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
            f"first in row {altered[0]}; they are trained as the rows have them"
        )
    return said


def _row(path: Path, number: int, line: str, need_response: bool) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path} line {number}: is no JSON ({error.msg}); write one object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise RecipeError(f'{path} line {number}: needs a non-empty "prompt"; found {line.strip()[:60]!r}')
    if need_response and (not isinstance(row.get("response"), str) or not row["response"]):
        raise RecipeError(f'{path} line {number}: prefix: dataset needs a "response" in each row')
    return row


def _turns(row: Mapping[str, Any], chat: Chat, where: str) -> list[dict[str, str]]:
    """The turns of a row's prompt under a model."""
    model = chat.model
    try:
        text = model.prompt.format(**row)
    except KeyError as error:
        raise RecipeError(f"{where}: the model's prompt names the field {error}, which the row lacks") from None
    except (ValueError, IndexError, AttributeError) as error:
        raise RecipeError(
            f"models: prompt {model.prompt!r} is no format string over a row's fields ({error})"
        ) from None
    return chat.turns(text)
