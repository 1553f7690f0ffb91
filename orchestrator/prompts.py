"""Where prompts come from: rows of a file, their token ids under every model, and the order of a run.

Tokenised once, here; the same response tokens are later scored behind any of these prompts and never tokenised again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import RecipeError
from configs.node import STUDENT
from configs.schema import Model


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


def tokenize(
    rows: Sequence[Mapping[str, Any]], models: Mapping[str, Model], tokenizers: Mapping[str, Any], where: Path
) -> list[Prompt]:
    """Rows -> prompts. Raises RecipeError when a row lacks a field that a model's prompt names."""
    student = tokenizers[STUDENT]
    return [
        Prompt(
            row=row,
            ids={name: _prompt_ids(row, models[name], tokenizers[name], f"{where} row {i}") for name in tokenizers},
            response_ids=_response_ids(row, student),
        )
        for i, row in enumerate(rows, 1)
    ]


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


def _prompt_ids(row: Mapping[str, Any], model: Model, tokenizer: Any, where: str) -> list[int]:
    try:
        text = model.prompt.format(**row)
    except KeyError as error:
        raise RecipeError(f"{where}: the model's prompt names the field {error}, which the row lacks") from None
    except (ValueError, IndexError, AttributeError) as error:
        raise RecipeError(
            f"models: prompt {model.prompt!r} is no format string over a row's fields ({error})"
        ) from None
    turns = [{"role": "system", "content": model.system}] if model.system else []
    turns.append({"role": "user", "content": text})
    if tokenizer.chat_template is None:
        return list(tokenizer("\n".join(turn["content"] for turn in turns))["input_ids"])
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])


def _response_ids(row: Mapping[str, Any], tokenizer: Any) -> list[int] | None:
    if "response" not in row:
        return None
    return [*tokenizer(str(row["response"]), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
