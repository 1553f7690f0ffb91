"""Chat templates: arguments, how a demonstration begins and ends, and what is refused. The tokenizer is a real one."""

from __future__ import annotations

from typing import Any

import pytest

from configs.load import RecipeError
from configs.schema import Model
from orchestrator.samples.prompts import Prompt
from orchestrator.samples.templates import Chat
from tests.tiny import CHAT_TEMPLATE, SPECIAL, build_tokenizer
from tests.unit.data import listed
from tests.unit.recipes import refusal

END = {text: i for i, text in enumerate(SPECIAL)}  # <|end|>, <|im_start|>, <|im_end|>

STRIPS = CHAT_TEMPLATE.replace("m['content']", "m['content'] | trim")
THINKS = (  # as Qwen3: an empty block of thoughts in front of an answer that has none
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% if '</think>' in m.content %}"
    "<think>\n{{ m.content.split('</think>')[0].replace('<think>', '') | trim }}\n</think>\n\n"
    "{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    "{{ m.content.split('</think>')[-1] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENS = THINKS.replace("{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}", "<think>\n")  # as Qwen3.5
FORGETS = STRIPS.replace("m['content']", "m['content'].split('</think>')[-1]")  # as DeepSeek-R1


def test_a_demonstration_ends_as_the_template_ends_a_turn_and_not_with_the_eos_token() -> None:
    (prompt,), said = demonstrated("three!", eos="<|end|>", ends=(END["<|end|>"], END["<|im_end|>"]))
    assert read(prompt) == "three!<|im_end|>" and said == []


def test_the_end_is_the_first_token_that_generation_stops_at() -> None:
    closed = CHAT_TEMPLATE.replace("<|im_end|>", " ~<|im_end|><|end|>")
    (prompt,), _ = demonstrated("three!", closed, eos="<|end|>", ends=(END["<|end|>"],))
    assert read(prompt) == "three! ~<|im_end|><|end|>"
    (prompt,), _ = demonstrated("three!", closed, eos="<|end|>", ends=(END["<|im_end|>"],))
    assert read(prompt) == "three! ~<|im_end|>"


def test_without_a_template_a_demonstration_ends_with_the_eos_token() -> None:
    (prompt,), _ = demonstrated("three!", None, eos="<|end|>")
    assert read(prompt) == "three!<|end|>"
    with pytest.raises(RecipeError, match="neither a chat template nor an eos_token"):
        demonstrated("three!", None, eos=None)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, STRIPS])
def test_a_response_is_trained_as_its_row_has_it(template: str) -> None:
    (prompt,), said = demonstrated("  three!\n", template)
    assert read(prompt) == "  three!\n<|im_end|>" and said == []


def test_the_beginning_of_a_turn_is_trained_and_reported() -> None:
    (prompt,), said = demonstrated("three!", THINKS)
    assert read(prompt) == "<think>\n\n</think>\n\nthree!<|im_end|>"
    assert said == [
        "p.jsonl: the student's chat template begins an assistant's message with '<think>\\n\\n</think>\\n\\n'; "
        "responses that do not begin with it are trained behind it"
    ]
    (prompt,), said = demonstrated("three!", OPENS)  # the prompt has opened it
    assert read(prompt) == "\n</think>\n\nthree!<|im_end|>" and len(said) == 1


def test_in_a_prompt_that_brings_the_thoughts_they_are_not_trained() -> None:
    (prompt,), said = demonstrated("three!", THINKS, template={"enable_thinking": False})
    assert decoded(prompt.ids["student"]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert read(prompt) == "three!<|im_end|>" and said == []


@pytest.mark.parametrize(
    ("template", "trained"),
    [(THINKS, "<think>two, one</think>three!<|im_end|>"), (OPENS, "two, one</think>three!<|im_end|>")],
)
def test_thoughts_of_a_row_stay_and_are_opened_once(template: str, trained: str) -> None:
    (prompt,), _ = demonstrated("<think>two, one</think>three!", template)
    assert read(prompt) == trained


def test_a_template_that_would_forget_thoughts_takes_none_away_and_is_named() -> None:
    prompts, said = demonstrated("three!", FORGETS, more=("<think>two</think>three!",))
    assert [read(prompt) for prompt in prompts] == ["three!<|im_end|>", "<think>two</think>three!<|im_end|>"]
    assert said == [
        "p.jsonl: the student's chat template would change 1 of 2 responses, the first in line 2; "
        "they are trained as the rows have them"
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            CHAT_TEMPLATE.replace("<|im_end|>", ""),
            "ends an assistant's message with '\\n', which holds none of the end",
        ),
        (CHAT_TEMPLATE.replace("<|im_end|>", "<|end|>"), "holds none of the end tokens ['<|im_end|>'] that generation"),
        (CHAT_TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if m.role == 'user' }}"), "does not write an"),
    ],
)
def test_a_template_whose_turns_do_not_end_where_generation_stops_is_refused(template: str, message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        demonstrated("three!", template)
    assert "models.student: its chat template" in str(refusal.value) and message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_response_that_holds_an_end_token_is_refused_by_row() -> None:
    for response in ("three!<|im_end|>", "three<|im_end|>!"):
        with pytest.raises(
            RecipeError, match=r"p.jsonl line 2: its response holds the end token '<\|im_end\|>'; leave"
        ):
            demonstrated("three!", more=(response,))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", "system and user (TemplateError: System role not"),
        ("{% if messages[0].role == 'system' %}{{ nothing.here }}{% endif %}", "(UndefinedError: 'nothing' is"),
        ("{% for m in messages %}", "(TemplateSyntaxError: Unexpected end of template"),
        ("{{ messages[0]['content'] + 1 }}", "(TypeError: "),
        ("{{ 1 // 0 }}", "(ZeroDivisionError: "),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "(OverflowError: "),
    ],
)
def test_an_error_of_a_template_is_one_line_that_names_the_model(template: str, message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        prompts_of(template, system="be brief")
    said = str(refusal.value)
    assert said.startswith("models.student: its chat template does not take the messages") and message in said
    assert "put the text of `system` into `prompt`" in said and "\n" not in said


def test_a_template_that_leaves_the_system_turn_out_is_refused() -> None:
    deaf = CHAT_TEMPLATE.replace("in messages", "in messages if m.role != 'system'")
    assert prompts_of(deaf)
    with pytest.raises(
        RecipeError, match=r"models.student.system: its chat template leaves the system message out; put"
    ):
        prompts_of(deaf, system="be brief")


@pytest.mark.parametrize("template", ["", "say something", CHAT_TEMPLATE.replace("m['content']", "m['text']")])
def test_a_template_that_leaves_the_users_turn_out_is_refused(template: str) -> None:
    with pytest.raises(
        RecipeError, match=r"models.student: its chat template leaves the user's message out, so that all"
    ):
        prompts_of(template)


def test_an_argument_that_the_template_does_not_read_is_refused() -> None:
    assert prompts_of(THINKS, template={"enable_thinking": False})
    with pytest.raises(RecipeError, match=r"models.student.template: its chat template does not read 'enable_thinkin'"):
        prompts_of(THINKS, template={"enable_thinkin": False})
    with pytest.raises(RecipeError, match=r"models.student.template: its tokenizer has no chat template; leave it out"):
        prompts_of(None, template={"enable_thinking": False})


def test_several_templates_without_a_default_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"models.student: This model has multiple chat templates with no default"):
        prompts_of({"tools": CHAT_TEMPLATE, "rag": CHAT_TEMPLATE})
    assert prompts_of({"default": CHAT_TEMPLATE, "rag": "nothing"})


def test_an_argument_that_rendering_sets_itself_is_refused_in_the_recipe() -> None:
    said = refusal({"models.student.template": {"add_generation_prompt": False}})
    assert "models.student.template" in said and "add_generation_prompt: is no argument of a chat template" in said


def demonstrated(
    response: str,
    jinja: str | None = CHAT_TEMPLATE,
    eos: str | None = "<|im_end|>",
    ends: tuple[int, ...] = (),
    more: tuple[str, ...] = (),
    **keys: Any,
) -> tuple[list[Prompt], list[str]]:
    chat = chat_of(jinja, eos, **keys)
    rows = [{"prompt": "two", "response": text} for text in (response, *more)]
    return listed.demonstrated(rows, chat, ends)


def prompts_of(jinja: Any, **keys: Any) -> list[Prompt]:
    return listed.tokenize([{"prompt": "two"}], {"student": chat_of(jinja, **keys)})


def chat_of(jinja: Any, eos: str | None = "<|im_end|>", **keys: Any) -> Chat:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = jinja
    tokenizer.eos_token = eos
    return Chat("student", Model(path="s", **keys), tokenizer)


def read(prompt: Prompt) -> str:
    assert prompt.response_ids is not None
    return decoded(prompt.response_ids)


def decoded(ids: list[int]) -> str:
    return build_tokenizer().decode(ids)
