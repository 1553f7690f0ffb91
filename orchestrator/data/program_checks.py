"""What rewards of programs need of rows: tests that can be read, and for repairs Python programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.names.row_fields import field_of
from configs.refusal import RecipeError
from configs.reward_rules import MinimalEditRule, ProgramRule, Rule
from orchestrator.data.checks import Sample
from rewards.edit_distance import tokens_of
from rewards.sandbox.cases import read_cases


def check_tests(rules: Sequence[Rule], samples: Sequence[Sample]) -> list[str]:
    """Warnings for rules that run tests which some rows lack. Raises RecipeError if all rows of all sets lack them, or
    for a row whose tests, given code or reference cannot be read."""
    running = [(f"reward.rules.{i}", rule) for i, rule in enumerate(rules) if isinstance(rule, ProgramRule)]
    fields = [(f"{key}.{name}", name, field) for key, rule in running for name, field in _fields(rule).items()]
    return [line for key, name, field in fields for line in _without(key, name, field, samples)]


def _fields(rule: ProgramRule) -> dict[str, str]:
    more = {"given": rule.given, "reference": rule.reference} if isinstance(rule, MinimalEditRule) else {}
    return {"field": rule.field, **more}


def _without(key: str, name: str, field: str, samples: Sequence[Sample]) -> Iterator[str]:
    lacking = [_lacking(name, field, sample) for sample in samples]
    if samples and all(len(numbers) == len(sample.rows) for numbers, sample in zip(lacking, samples, strict=True)):
        raise RecipeError(f"{key}: no row of {samples[0].name} has {field!r}; name a field that rows have")
    for numbers, sample in zip(lacking, samples, strict=True):
        if numbers:
            yield (
                f"{key}: {len(numbers)} of {len(sample.rows)} rows of {sample.name} lack {field!r}, the first in "
                f"{sample.unit} {numbers[0]}; the reward worker rejects every response to them"
            )


def _lacking(name: str, field: str, sample: Sample) -> list[int]:
    at = f"{sample.name} {sample.unit}"
    return [number for number, row in sample.rows.items() if not _has(f"{at} {number}", name, field, row)]


def _has(where: str, name: str, field: str, row: Mapping[str, Any]) -> bool:
    value = field_of(row, field)
    if value is None:
        return False
    try:
        read_cases(value) if name == "field" else _read_program(value)
    except ValueError as error:
        raise RecipeError(f"{where}: {field}: {error}") from None
    return True


def _read_program(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError("is no text; give a Python program")
    tokens_of(value)
