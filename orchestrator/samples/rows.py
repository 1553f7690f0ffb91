"""Rows of a prompt file: one JSON object per line. A bad row is refused with its line number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from configs.objective import Route
from configs.refusal import RecipeError, shortened, shown
from configs.reward_rules import ExactRule, MatchRule, MathsRule, Rule
from configs.row_fields import answer_of, field_of
from configs.text_file import read_text

_COMPARE = (ExactRule, MatchRule, MathsRule)

Rows = Mapping[int, Mapping[str, Any]]  # by line of the file, from 1


def read_rows(path: Path, need_response: bool = False) -> dict[int, dict[str, Any]]:
    """Rows of a JSON-lines file, by line. Raises RecipeError with the file, the line and the remedy."""
    text = read_text(path, "give a file of JSON lines in data.prompts and data.heldout")
    lines = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise RecipeError(f'{path}: prompt file is empty; give at least one line {{"prompt": "..."}}')
    _refuse_one_value(path, text)
    return {number: _row(f"{path} line {number}", line, need_response) for number, line in lines.items()}


def check_answers(rules: Sequence[Rule], rows: Rows, where: Path) -> list[str]:
    """Warnings for rules that compare with a field which some rows lack. Raises RecipeError if all rows lack it, or if
    a row holds a value that no response can equal."""
    comparing = [(f"reward.rules.{i}.field", rule) for i, rule in enumerate(rules) if isinstance(rule, _COMPARE)]
    return [line for key, rule in comparing for line in _without_answer(key, rule, rows, where)]


def _without_answer(key: str, rule: Any, rows: Rows, where: Path) -> list[str]:
    field = rule.field
    lacking = [line for line, row in rows.items() if not _has_answer(f"{where} line {line}", rule, row)]
    if not lacking:
        return []
    first = rows[lacking[0]]
    if len(lacking) == len(rows):
        raise RecipeError(
            f"{key}: no row of {where} has {field!r}, so no response would be right; name a field that rows have; the "
            f"first has {shown(_paths(first))}"
        )
    return [
        f"{key}: {len(lacking)} of {len(rows)} rows of {where} lack {field!r}, the first in line {lacking[0]}; the "
        + (
            "reward worker rejects every response to them"
            if isinstance(rule, MathsRule)
            else "rule gives every response to them 0"
        )
    ]


def _has_answer(where: str, rule: Any, row: Mapping[str, Any]) -> bool:
    if isinstance(rule, MatchRule) and isinstance(field_of(row, rule.field), list):
        return True
    try:
        return answer_of(row, rule.field) is not None
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def _paths(row: Mapping[str, Any], above: str = "") -> list[str]:
    """The fields of a row by their dotted paths."""
    found: list[str] = []
    for name, value in row.items():
        path = f"{above}{name}"
        found += _paths(value, f"{path}.") if isinstance(value, Mapping) and value else [path]
    return found


def check_route(route: Route, rows: Rows, where: Path) -> None:
    """Raise RecipeError for a row whose routing field names no teacher."""
    for line, row in rows.items():
        value = route.value_of(row)
        if value not in route.models:
            raise RecipeError(
                f"{where} line {line}: {route.field} is {shown(value)}, which names no teacher; use one of "
                f"objective.target.models: {sorted(route.models)}"
            )


def _refuse_one_value(path: Path, text: str) -> None:
    """Refuse a file that is one JSON value, as other tools write it. A file of lines with one bad line passes."""
    start = text.lstrip()[:1]
    if start not in ("[", "{") or (start == "{" and text.strip().split("\n", 1)[0].rstrip().endswith("}")):
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # not one value, so lines
        return
    kind = "array" if isinstance(value, list) else "object over several lines"
    query = ".[]" if isinstance(value, list) else "."
    raise RecipeError(f"{path}: is one JSON {kind}; write an object a line: jq -c '{query}' {path} > prompts.jsonl")


def _row(where: str, line: str, need_response: bool) -> dict[str, Any]:
    row = _parsed(where, line)
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise RecipeError(f'{where}: needs a non-empty "prompt"; found {shown(line.strip(), 60)}')
    if need_response and (not isinstance(row.get("response"), str) or not row["response"]):
        raise RecipeError(f'{where}: prefix: dataset needs a "response" in each row')
    return row


def _parsed(where: str, line: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise RecipeError(f"{where}: the key {shown(twice)} stands twice; remove one of them")
        return row

    def finite(word: str) -> NoReturn:
        raise RecipeError(f"{where}: {word} is no JSON; write a number, or null")

    try:
        row = json.loads(line, object_pairs_hook=once, parse_constant=finite)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{where}: is no JSON ({error.msg}); write one object a line") from None
    except ValueError as error:
        raise RecipeError(f"{where}: is JSON that cannot be read ({error}); quote the number") from None
    except RecursionError:
        raise RecipeError(f"{where}: is nested too deeply; flatten it") from None
    if "\\u" in line:
        _refuse_half_characters(where, row)
    return row


def _refuse_half_characters(where: str, row: Any) -> None:
    """Refuse half of a surrogate pair: JSON can spell it, but it is no character, so no tokenizer takes it."""
    written = json.dumps(row, ensure_ascii=False)
    try:
        written.encode()
    except UnicodeEncodeError as error:
        found = written[max(0, error.start - 20) : error.end]
        raise RecipeError(
            f"{where}: {shortened(found)!r} ends in half a surrogate pair, which is no character; write both halves, "
            "or remove it"
        ) from None
