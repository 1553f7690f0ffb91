"""Rows with messages: what is the prompt, what the demonstration, and what every model reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from configs.data import DataSet
from configs.refusal import RecipeError
from configs.schema import Model
from orchestrator.data.rows import Rows
from orchestrator.samples.templates import Chat
from tests.tiny import CHAT_TEMPLATE, build_tokenizer
from tests.unit.data.listed import Listed, demonstrated, tokenize

SYSTEM, ASKED = {"role": "system", "content": "be kind"}, {"role": "user", "content": "one?"}
SAID, AGAIN = {"role": "assistant", "content": "1"}, {"role": "user", "content": "two?"}


def used(row: dict[str, Any], need_response: bool = False) -> dict[str, Any]:
    return Rows(Listed([row]), DataSet(path="p"), need_response)[0]


@pytest.mark.parametrize("messages", [[SYSTEM, ASKED, SAID, AGAIN, {"role": "assistant", "content": "2"}]])
@pytest.mark.parametrize("written", [list, json.dumps])
def test_the_last_assistant_turn_is_the_demonstration(messages: Any, written: Any) -> None:
    row = used({"messages": written(messages)}, need_response=True)
    assert (row["messages"], row["prompt"], row["response"]) == ([SYSTEM, ASKED, SAID, AGAIN], "two?", "2")


def test_a_response_of_the_row_goes_before_the_last_turn() -> None:
    assert used({"messages": [ASKED, SAID], "response": "one"})["response"] == "one"


def test_a_prompt_may_be_a_list_of_messages_and_a_text_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": "on"}, {"text": "e?"}]
    row = used({"prompt": [{"role": "user", "content": parts, "tool_calls": None}]})
    assert (row["prompt"], row["messages"]) == ("one?", [ASKED])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": "hello"}, "p.jsonl line 1: messages are no JSON list; found 'hello'"),
        ({"messages": []}, "messages need a list of role and content; found []"),
        ({"messages": {"role": "user"}}, "messages need a list of role and content"),
        ({"messages": [{"content": "x"}]}, "message 1 has no role"),
        ({"messages": [ASKED, {"role": "user", "content": None}]}, "message 2 has no text; found None"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1 has no text"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{}]}]}, "message 2 calls a tool"),
        ({"messages": [SAID]}, "no user speaks before the response"),
        ({"messages": [SYSTEM, SAID]}, "no user speaks before the response"),
        ({"messages": [ASKED, SAID, SAID]}, "no user speaks before the response"),
        ({"messages": [{"role": "user", "content": " "}]}, 'needs a non-empty "prompt"'),
        ({"prompt": "x", "weight": -1}, "p.jsonl line 1: weight is -1; write a number from 0 on"),
        ({"prompt": "x", "weight": "much"}, "weight is 'much'"),
    ],
)
def test_what_is_no_chat_is_refused_by_its_row(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        used(row)
    assert said in str(refusal.value)


def chat(name: str = "student", **keys: Any) -> Chat:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = "<|im_end|>"
    return Chat(name, Model(path="s", **keys), tokenizer)


def test_every_model_reads_the_whole_chat_with_its_own_system_message_and_last_turn() -> None:
    chats = {"student": chat(), "teacher": chat("teacher", system="be brief", prompt="{prompt} (it is {answer})")}
    row = {"messages": [SYSTEM, ASKED, SAID, AGAIN], "answer": 2}
    (prompt,) = tokenize([row], chats)
    read = {name: chats[name].tokenizer.decode(ids) for name, ids in prompt.ids.items()}
    turns = "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\ntwo?"
    assert read["student"] == f"<|im_start|>system\nbe kind<|im_end|>\n{turns}<|im_end|>\n<|im_start|>assistant\n"
    assert read["teacher"].startswith("<|im_start|>system\nbe brief\n\nbe kind<|im_end|>\n<|im_start|>user\none?")
    assert read["teacher"].endswith("two? (it is 2)<|im_end|>\n<|im_start|>assistant\n")


def test_a_chat_is_a_demonstration_behind_its_earlier_turns() -> None:
    student = chat()
    (prompt,), said = demonstrated(
        [{"messages": [ASKED, SAID, AGAIN, {"role": "assistant", "content": "2"}]}], student, ()
    )
    assert said == [] and student.tokenizer.decode(prompt.response_ids) == "2<|im_end|>"
    assert student.tokenizer.decode(prompt.ids["student"]).count("<|im_end|>") == 3


def test_a_template_that_rejects_a_rows_turns_names_the_row() -> None:
    strict = chat()
    strict.tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
    )
    with pytest.raises(
        RecipeError, match=r"^p.jsonl line 2: models.student: its chat template does not take .*no system"
    ):
        tokenize([{"prompt": "x"}, {"messages": [SYSTEM, ASKED]}], {"student": strict})
