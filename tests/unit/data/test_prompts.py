"""Prompt files and their refusals, ids under every model, and the order of a run. The tokenizer is a stub."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from configs.data import DataSet
from configs.load import RecipeError
from configs.schema import Model
from orchestrator.data.files.opening import open_table
from orchestrator.data.rows import Rows
from orchestrator.samples.prompts import Prompt, PromptStream
from orchestrator.samples.templates import Chat
from tests.unit.data.listed import tokenize


class Letters:
    """A token a letter; the chat template puts role letters before messages and a `>` at the end."""

    eos_token_id = 0

    def __init__(self, template: str | None = "chat") -> None:
        self.chat_template = template

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in ("^" if add_special_tokens else "") + text]}

    def apply_chat_template(
        self, conversation: list[dict[str, str]], add_generation_prompt: bool, tokenize: bool, **arguments: Any
    ) -> str:
        assert add_generation_prompt and not tokenize
        written = "".join(f"{m['role'][0]}:{m['content']};" for m in conversation)
        return written + "".join(f"{name}={value};" for name, value in arguments.items()) + ">"

    def get_chat_template(self) -> str | None:
        return self.chat_template


def text(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def student(tokenizer: Letters | None = None, **keys: Any) -> dict[str, Chat]:
    return {"student": Chat("student", Model(path="s", **keys), tokenizer or Letters())}


def read(tmp_path: Path, content: str, need_response: bool = False) -> list[dict[str, Any]]:
    file = tmp_path / "p.jsonl"
    file.write_text(content, encoding="utf-8")
    return rows_of(file, need_response)


def rows_of(file: Path, need_response: bool = False) -> list[dict[str, Any]]:
    entry = DataSet(path=str(file))
    rows = Rows(open_table(entry), entry, need_response)
    return [rows[place] for place in range(len(rows))]


def test_rows_keep_their_fields_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    rows = read(tmp_path, '{"prompt": "a", "answer": 1}\n\n  \n{"prompt": "é"}')
    assert rows == [{"prompt": "a", "answer": 1}, {"prompt": "é"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", 'p.jsonl: prompt file is empty; give at least one line {"prompt": "..."}'),
        ("\n \n", "p.jsonl: prompt file is empty"),
        ('{"prompt": "a"}\n\n{"prompt": ', "p.jsonl line 3: is no JSON (Expecting value); write one object a line"),
        ('["a"]\n{}', 'p.jsonl line 1: needs a non-empty "prompt"; found \'["a"]\''),
        ('["a"]', "p.jsonl: is one JSON array; write an object a line: jq -c '.[]'"),
        ('[{"prompt": "a"},\n {"prompt": "b"}]', "is one JSON array; write an object a line: jq -c '.[]'"),
        ('{\n"prompt": "a"\n}\n', "is one JSON object over several lines; write an object a line: jq -c '.'"),
        ('{"prompt": "a", "x": {"y": 1, "y": 2}}', "p.jsonl line 1: the key 'y' stands twice; remove one of them"),
        ('{"prompt": "\\ud83d"}', "ends in half a surrogate pair, which is no character"),
        ('{"prompt": "a", "x": [{"\\udc00": 1}]}', "ends in half a surrogate pair, which is no character"),
        ('{"prompt": "a", "x": NaN}', "p.jsonl line 1: NaN is no JSON; write a number, or null"),
        ('{"prompt": "a", "x": ' + "1" * 5000 + "}", "p.jsonl line 1: is JSON that cannot be read (Exceeds the limit"),
        ('{"prompt": "a", "x": ' + "[" * 100_000, "p.jsonl line 1: is nested too deeply; flatten it"),
        ('\0{"prompt": "a"}', "p.jsonl line 1: is no JSON"),
        ('{"text": "a"}', 'p.jsonl line 1: needs a non-empty "prompt"; found'),
        ('{"prompt": 3}', 'p.jsonl line 1: needs a non-empty "prompt"; found'),
        ('{"prompt": " "}', 'p.jsonl line 1: needs a non-empty "prompt"; found'),
    ],
)
def test_a_bad_prompt_file_is_refused_by_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        read(tmp_path, content)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"prompt": "a", "response": ""}, {"prompt": "a", "response": 3}])
def test_a_dataset_row_needs_a_response(tmp_path: Path, row: dict[str, Any]) -> None:
    good = json.dumps({"prompt": "a", "response": "b"}) + "\n"
    with pytest.raises(RecipeError, match='line 2: prefix: dataset needs a "response" in each row'):
        read(tmp_path, good + json.dumps(row), need_response=True)
    assert read(tmp_path, good, need_response=True) == [{"prompt": "a", "response": "b"}]


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.jsonl", "binary", "."):
        with pytest.raises(
            RecipeError, match=r"cannot be read \(.*\); (give a file of JSON lines, Parquet, CSV|save it as)"
        ):
            rows_of(tmp_path / name)


def test_a_line_separator_inside_a_prompt_does_not_end_the_line(tmp_path: Path) -> None:
    row = {"prompt": "one\u2028two\u0085three"}
    assert read(tmp_path, json.dumps(row, ensure_ascii=False)) == [row]


def test_each_model_reads_its_own_prompt() -> None:
    models = {
        "student": Model(path="s"),
        "teacher": Model(path="t", system="be brief", prompt="{prompt} ({answer})"),
        "unused": Model(path="u", prompt="{nowhere}"),
    }
    chats = {name: Chat(name, models[name], Letters()) for name in ("student", "teacher")}
    (prompt,) = tokenize([{"prompt": "why", "answer": 4}], chats)
    assert {name: text(ids) for name, ids in prompt.ids.items()} == {
        "student": "u:why;>",
        "teacher": "s:be brief;u:why (4);>",
    }
    assert prompt.row == {"prompt": "why", "answer": 4} and prompt.response_ids is None


def test_braces_in_a_row_are_text() -> None:
    (prompt,) = tokenize([{"prompt": "{x} {}"}], student())
    assert text(prompt.ids["student"]) == "u:{x} {};>"


def test_without_a_chat_template_turns_are_lines() -> None:
    (prompt,) = tokenize([{"prompt": "why"}], student(Letters(template=None), system="sys"))
    assert text(prompt.ids["student"]) == "^sys\nwhy"


def test_arguments_of_the_recipe_reach_every_models_template() -> None:
    letters = Letters("chat, mood")
    chats = {
        "student": Chat("student", Model(path="s", template={"mood": "calm"}), letters),
        "teacher": Chat("teacher", Model(path="t", template={"mood": "wild"}, prompt="well, {prompt}"), letters),
    }
    (prompt,) = tokenize([{"prompt": "why"}], chats)
    assert text(prompt.ids["student"]) == "u:why;mood=calm;>"
    assert text(prompt.ids["teacher"]) == "u:well, why;mood=wild;>"


def test_a_field_that_a_row_lacks_is_refused_by_name_and_row() -> None:
    rows = [{"prompt": "a", "solution": "b"}, {"prompt": "c"}]
    with pytest.raises(RecipeError, match=r"p.jsonl line 2: the model's prompt names the field 'solution', which"):
        tokenize(rows, student(prompt="{solution}"))


@pytest.mark.parametrize("template", ["{prompt", "{}", "{prompt.nothing}"])
def test_a_prompt_that_is_no_format_string_is_refused(template: str) -> None:
    with pytest.raises(RecipeError):
        tokenize([{"prompt": "a"}], student(prompt=template))


PROMPTS = [Prompt({"prompt": str(i)}, {}, None) for i in range(10)]


def order(seed: int, count: int, shuffle: bool = True, first: int = 0) -> list[int]:
    stream = PromptStream(PROMPTS, seed, shuffle)
    return [int(stream[i].row["prompt"]) for i in range(first, first + count)]


def test_an_epoch_is_a_permutation_and_the_next_is_another() -> None:
    first, second = order(0, 10), order(0, 10, first=10)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_without_shuffle_the_order_is_the_file_s() -> None:
    assert order(0, 12, shuffle=False) == [*range(10), 0, 1]


def test_a_position_is_the_whole_state() -> None:
    assert order(3, 25)[13:] == order(3, 12, first=13)
    stream = PromptStream(PROMPTS, 3, True)
    there_and_back = [stream[i] for i in (21, 2, 21)]
    assert there_and_back[0] == there_and_back[2]


def test_the_order_follows_from_the_seed() -> None:
    assert order(1, 10) == order(1, 10) != order(2, 10)


def test_a_retry_of_an_old_epoch_shuffles_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of two epochs in turn, as where members are asked again for what died with others."""
    shuffled: list[str] = []

    class Counted(random.Random):
        def __init__(self, seed: str) -> None:
            shuffled.append(seed)
            super().__init__(seed)

    monkeypatch.setattr("orchestrator.samples.prompts.random.Random", Counted)
    rows = [Prompt({"prompt": str(i)}, {}, None) for i in range(50)]
    stream = PromptStream(rows, 7, True)
    seen = [[stream[index].row["prompt"] for index in (i, 50 + i)] for i in range(50)]
    assert shuffled == ["7/0", "7/1"]
    assert [sorted(order, key=int) for order in zip(*seen, strict=True)] == [[str(i) for i in range(50)]] * 2
