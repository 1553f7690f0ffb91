"""Prompts made when they are asked for: what is checked before, what is left out after, what is cut, and weights."""

from __future__ import annotations

from typing import Any

import pytest

from configs.objective import Route
from configs.refusal import RecipeError
from configs.schema import Model
from orchestrator.data import prompt_set as module
from orchestrator.data.cutting import cut
from orchestrator.data.prompt_set import PromptSet, spread
from orchestrator.data.prompting import Limit, Prompting
from orchestrator.data.sets import Mixed, dropped, named, order
from orchestrator.samples.prompts import PromptStream
from orchestrator.samples.templates import Chat
from tests.unit.data.listed import Listed, prompt_set


class Letters:
    """A token a letter; turns end with a line."""

    eos_token_id = 0
    chat_template = "letters"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def apply_chat_template(self, conversation: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"{turn['role'][0]}{turn['content']}\n" for turn in conversation)


ROOM = 12


def prompting(**more: Any) -> Prompting:
    chats = {"student": Chat("student", Model(path="s"), Letters())}
    return Prompting(chats, (Limit("student", "rollout", ROOM + 5, 5),), **more)


def small_limits(monkeypatch: pytest.MonkeyPatch, checked: int = 4, cached: int = 40) -> None:
    monkeypatch.setattr(module, "CHECKED", checked)
    monkeypatch.setattr(module, "WHOLE", checked)
    monkeypatch.setattr(module, "CACHED", cached)


def table(prompts: PromptSet) -> Listed:
    return prompts._rows.table  # type: ignore[return-value]


def texts(rows: int, **bad: Any) -> list[Any]:
    """Rows `0`, `1`, ...; `bad` are others, by `row_NUMBER`."""
    return [bad.get(f"row_{i}", {"prompt": str(i)}) for i in range(rows)]


LONG = {"prompt": "x" * 40}


def test_a_small_set_is_refused_for_a_prompt_that_is_too_long() -> None:
    with pytest.raises(RecipeError) as refusal:
        prompt_set(texts(5, row_3=LONG), prompting()).check()
    assert str(refusal.value) == (
        f"p.jsonl line 4: prompt '{'x' * 40}' has 42 tokens under models.student; with a response of 5 that exceeds "
        "rollout.max_context_tokens 17; shorten it, raise the limit, or set data.too_long to drop or cut"
    )


def test_what_is_too_long_is_dropped_by_name_and_the_rest_keeps_its_order() -> None:
    prompts = prompt_set(texts(5, row_3=LONG), prompting(), drops=True)
    assert prompts.check().longest == {"student": 3}
    assert [prompt.row["prompt"] for prompt in prompts] == ["0", "1", "2", "4"]
    assert list(prompts.dropped) == ["p.jsonl line 4"] and "has 42 tokens" in prompts.dropped["p.jsonl line 4"]
    assert named(dropped(prompts)) == {"count": 1, "first": prompts.dropped}


def test_a_set_in_which_nothing_fits_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"p.jsonl: no prompt fits: p.jsonl line 1: prompt 'x"):
        prompt_set([LONG, LONG], prompting(), drops=True).check()


def test_of_a_large_set_a_bounded_number_is_read_before_and_kept_after(monkeypatch: pytest.MonkeyPatch) -> None:
    small_limits(monkeypatch)
    prompts = prompt_set(texts(1000), prompting())
    prompts.check()
    assert table(prompts).asked == 4 and not prompts.whole and len(prompts) == 1000
    for i in range(1000):
        assert prompts[i].row == {"prompt": str(i)} and prompts[i].line == i + 1
    assert table(prompts).asked <= 1004 and 1 < len(prompts._kept) < 20  # asked again at once, it is still there
    assert type(prompts[999].ids["student"]) is list


def test_a_bad_row_that_is_met_later_is_left_out_by_its_number_and_another_stands_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_limits(monkeypatch)
    bad = {"row_1": "p.jsonl line 2: is no JSON", "row_5": {"text": "?"}, "row_7": LONG}
    prompts = prompt_set(texts(10, **bad), prompting())
    prompts.check()
    stream = PromptStream(prompts, 3, True, prompts.weights)
    seen = [stream[i].row["prompt"] for i in range(20)]
    assert set(seen) == set("0234689") and list(prompts.dropped) and len(prompts.dropped) == 3
    assert prompts.dropped["p.jsonl line 2"] == "p.jsonl line 2: is no JSON"
    assert 'p.jsonl line 6: needs a non-empty "prompt"' in prompts.dropped["p.jsonl line 6"]
    fresh = prompt_set(texts(10, **bad), prompting())
    assert [PromptStream(fresh, 3, True)[i].row["prompt"] for i in reversed(range(20))] == seen[::-1]  # as a resume


def test_a_bad_row_among_those_checked_refuses_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    small_limits(monkeypatch)
    for row in (0, 3, 6, 9):
        with pytest.raises(RecipeError, match=r"needs a non-empty"):
            prompt_set(texts(10, **{f"row_{row}": {}}), prompting()).check()


def test_a_run_ends_where_nothing_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompt_set([LONG] * 3, prompting())
    with pytest.raises(RuntimeError, match=r"none of 1000 prompts in a row can be used; the last: p.jsonl line"):
        PromptStream(prompts, 0, True)[0]


def test_a_route_that_leads_nowhere_is_found_in_rows_that_were_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    small_limits(monkeypatch, checked=2)
    rows = [{"prompt": "a", "teacher": name} for name in ("maths", "other", "maths")]
    prompts = prompt_set(rows, prompting(route=Route(field="teacher", models={"maths": "teacher"})))
    prompts.check()
    with pytest.raises(RecipeError, match=r"p.jsonl line 2: teacher is 'other', which names no teacher"):
        prompts[1]


def test_a_cut_prompt_keeps_its_end_to_a_character() -> None:
    prompts = prompt_set([{"prompt": "abcdefghijklmnopq", "answer": 1}], prompting(cuts=True))
    prompts.check()
    assert prompts[0].row == {"prompt": "hijklmnopq", "answer": 1} and len(prompts[0].ids["student"]) == ROOM


SYSTEM = {"role": "system", "content": "S"}


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def test_of_a_chat_the_oldest_turns_go_first_and_the_system_message_stays() -> None:
    row = {"messages": [SYSTEM, *turns("oldest", "reply", "older", "reply", "last")]}
    prompts = prompt_set([row], prompting(cuts=True))
    prompts.check()
    assert prompts[0].row["messages"] == [SYSTEM, *turns("last")]
    kept = cut({"prompt": "c", "messages": turns("a", "b", "c")}, lambda row: len(row["messages"]) < 3)
    assert kept == {"prompt": "c", "messages": turns("c")}
    kept = cut(
        {"prompt": "abcdef", "messages": [SYSTEM, *turns("a", "b", "abcdef")]}, lambda row: len(row["prompt"]) < 4
    )
    assert kept == {"prompt": "def", "messages": [SYSTEM, *turns("def")]}


def test_a_prompt_that_other_fields_make_too_long_cannot_be_cut() -> None:
    chats = {"student": Chat("student", Model(path="s", prompt="{prompt}{solution}"), Letters())}
    long = Prompting(chats, (Limit("student", "rollout", 17, 5),), cuts=True)
    with pytest.raises(RecipeError, match=r"p.jsonl line 1: prompt 'b' has 23 tokens"):
        prompt_set([{"prompt": "ab", "solution": "x" * 20}], long).check()


def drawn(prompts: PromptSet, epochs: int) -> list[list[str]]:
    stream = PromptStream(prompts, 5, True, prompts.weights)
    return [[stream[e * len(prompts) + i].row["prompt"] for i in range(len(prompts))] for e in range(epochs)]


def test_rows_are_drawn_by_their_weights() -> None:
    rows = [{"prompt": str(i), "weight": weight} for i, weight in enumerate([0, 0.5, None, "2.5"])]
    prompts = prompt_set(rows, prompting())
    prompts.check()
    found = drawn(prompts, 400)
    assert all(epoch.count("0") == 0 and epoch.count("3") in (2, 3) for epoch in found)
    shares = [sum(epoch.count(str(i)) for epoch in found) / 1600 for i in range(4)]
    assert shares == pytest.approx([0, 0.125, 0.25, 0.625], abs=0.02)


def test_equal_weights_leave_every_row_its_one_place() -> None:
    prompts = prompt_set([{"prompt": str(i), "weight": 0.7} for i in range(7)], prompting())
    prompts.check()
    assert all(sorted(epoch) == list("0123456") for epoch in drawn(prompts, 50))


def test_weights_of_a_large_set_are_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    small_limits(monkeypatch)
    rows: list[Any] = [{"prompt": str(i), "weight": float(i == 5)} for i in range(10)]
    prompts = prompt_set([*rows[:7], "p.jsonl line 8: is no JSON", *rows[8:]], prompting())
    prompts.check()
    assert set(drawn(prompts, 3)[0]) == {"5"}
    with pytest.raises(RecipeError, match=r"p.jsonl: the weights of all lines are 0"):
        prompt_set([{"prompt": "a", "weight": 0}], prompting()).check()


def test_places_are_spread_from_the_first_to_the_last() -> None:
    assert list(spread(3, 10)) == [0, 1, 2]
    places = spread(1_000_000, 1000)
    assert (places[0], places[-1], len(set(places))) == (0, 999_999, 1000)


def test_one_set_has_the_order_that_it_always_had_and_two_have_orders_of_their_own() -> None:
    sets = [prompt_set(texts(10), prompting()) for _ in range(2)]
    alone, mixed = order(sets[0], 4, True), order(Mixed(tuple(sets), (1.0, 1.0)), 4, True)
    assert [alone[i] for i in range(10)] == [PromptStream(sets[0], 4, True)[i] for i in range(10)]
    first, second = (mixed._prompts._streams[k]._order(0) for k in (0, 1))  # type: ignore[attr-defined]
    assert list(first) != list(second)
