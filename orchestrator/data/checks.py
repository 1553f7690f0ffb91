"""What routes and rewards need of rows, checked before a run starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.names.row_fields import answer_of, field_of
from configs.objective import Route
from configs.refusal import RecipeError, shown
from configs.reward_rules import ExactRule, MatchRule, MathsRule, Rule

_COMPARE = (ExactRule, MatchRule, MathsRule)


@dataclass(frozen=True)
class Sample:
    """Rows of one set that were looked at, by their number in it; `unit` is what the set has: lines or rows."""

    name: str
    rows: Mapping[int, Mapping[str, Any]]
    unit: str = "line"


def check_answers(rules: Sequence[Rule], samples: Sequence[Sample]) -> list[str]:
    """Warnings for rules that compare with a field which some rows lack. Raises RecipeError if all rows of all sets
    lack it, or if a row holds a value that no response can equal."""
    comparing = [(f"reward.rules.{i}.field", rule) for i, rule in enumerate(rules) if isinstance(rule, _COMPARE)]
    return [line for key, rule in comparing for line in _without_answer(key, rule, samples)]


def _without_answer(key: str, rule: Any, samples: Sequence[Sample]) -> list[str]:
    field, lacking = rule.field, [_lacking(rule, sample) for sample in samples]
    if samples and all(len(numbers) == len(sample.rows) for numbers, sample in zip(lacking, samples, strict=True)):
        first = next(iter(samples[0].rows.values()))
        raise RecipeError(
            f"{key}: no row of {samples[0].name} has {field!r}, so no response would be right; name a field that rows "
            f"have; the first has {shown(_paths(first))}"
        )
    rejects = isinstance(rule, MathsRule)
    loss = "reward worker rejects every response to them" if rejects else "rule gives every response to them 0"
    return [
        f"{key}: {len(numbers)} of {len(sample.rows)} rows of {sample.name} lack {field!r}, the first in {sample.unit} "
        f"{numbers[0]}; the {loss}"
        for numbers, sample in zip(lacking, samples, strict=True)
        if numbers
    ]


def _lacking(rule: Any, sample: Sample) -> list[int]:
    """Numbers of the rows without the field of a rule."""
    at = f"{sample.name} {sample.unit}"
    return [number for number, row in sample.rows.items() if not _has_answer(f"{at} {number}", rule, row)]


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


def check_route(route: Route, row: Mapping[str, Any], at: str) -> None:
    """Raise RecipeError for a row whose routing field names no teacher."""
    value = route.value_of(row)
    if value not in route.models:
        raise RecipeError(
            f"{at}: {route.field} is {shown(value)}, which names no teacher; use one of "
            f"objective.target.models: {sorted(route.models)}"
        )
