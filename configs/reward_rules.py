"""The rewards that `reward.rules` may list: one class a kind, each with its own keys.

A new kind is a class, its name in `KINDS` and its line in `AnyRule`; what it does is a line in rewards/table.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from configs.names.own_code import is_code, or_own
from configs.node import Node, NonNegative, Positive, Seconds
from configs.refusal import shown

KINDS = (
    "length",
    "overlong",
    "contains",
    "regex",
    "exact",
    "match",
    "json_schema",
    "maths",
    "function",
    "code",
    "minimal_edit",
)

Where = Literal["last_block", "first_block", "whole"]  # of the code in a response

MODEL = "model"  # the component that is the reward model's score

_LEGACY = {"text": None, "field": "answer", "low": 0, "high": 1_000_000}  # once keys of every kind


class Rule(Node):
    """What all kinds share. The reward is the sum of `weight` times the rule's value. `name`: of its component in
    metrics and records; null: its kind, numbered where several have it."""

    kind: str
    weight: float = 1.0
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")] | None = None

    def longest(self, responses: int) -> float:
        """Seconds that a request of as many responses may take beyond what is usual."""
        return 0.0

    @model_validator(mode="before")
    @classmethod
    def _without_keys_of_other_kinds(cls, tree: Any) -> Any:
        """Recipes resolved by earlier versions hold the defaults of every kind's keys."""
        if not isinstance(tree, Mapping):
            return tree
        return {k: v for k, v in tree.items() if k in cls.model_fields or k not in _LEGACY or v != _LEGACY[k]}


class TimedRule(Rule):
    """A rule that runs in a process of its own beside the reward worker, which ends it after `seconds` without an
    answer: for one response, or with `batch` for all of a request."""

    seconds: Seconds = 10.0

    def longest(self, responses: int) -> float:
        return self.seconds * responses


class LengthRule(Rule):
    """1 for a response of `low` to `high` tokens; outside it falls linearly to 0 over `slope` tokens, at once where
    that is 0."""

    kind: Literal["length"] = "length"
    low: NonNegative = 0
    high: Positive = 1_000_000
    slope: NonNegative = 0

    @model_validator(mode="after")
    def _has_room(self) -> LengthRule:
        _refuse_crossed(self.low, self.high)
        return self


class OverlongRule(Rule):
    """DAPO's soft penalty: 0 up to `low` tokens, -1 from `high` on, linear between (arXiv 2503.14476, eq. 13)."""

    kind: Literal["overlong"] = "overlong"
    low: NonNegative = 0
    high: Positive = 1_000_000

    @model_validator(mode="after")
    def _has_room(self) -> OverlongRule:
        _refuse_crossed(self.low, self.high)
        return self


class ContainsRule(Rule):
    """1 for a response that contains `text`; case does not matter."""

    kind: Literal["contains"] = "contains"
    text: str | None = None

    @model_validator(mode="after")
    def _has_its_text(self) -> ContainsRule:
        if not self.text:
            raise ValueError("a contains rule needs text")
        return self


class RegexRule(TimedRule):
    """1 for a response in which the regular expression `text` is found; with `full` the whole response must match, but
    for outer white space."""

    kind: Literal["regex"] = "regex"
    text: str | None = None
    full: bool = False

    @model_validator(mode="after")
    def _has_its_pattern(self) -> RegexRule:
        if not self.text:
            raise ValueError("a regex rule needs text")
        _refuse_pattern(self.text)
        return self


class ExactRule(Rule):
    """1 for a response that equals the row's `field`, but for outer white space."""

    kind: Literal["exact"] = "exact"
    field: str = "answer"


class MatchRule(TimedRule):
    """1 for a response that equals the row's `field`, or an entry of it where it is a list, once both are normalised:
    NFKC, case, punctuation, the articles a, an, the, and white space do not count. With `extract`, a regular
    expression, its last match in the response is compared: its first group where it has one."""

    kind: Literal["match"] = "match"
    field: str = "answer"
    extract: str | None = None

    @model_validator(mode="after")
    def _has_its_pattern(self) -> MatchRule:
        if self.extract is not None:
            _refuse_pattern(self.extract)
        return self


class JsonRule(TimedRule):
    """1 for a response that is JSON, alone or in one fenced block, and valid under the JSON schema `shape`."""

    kind: Literal["json_schema"] = "json_schema"
    shape: dict[str, Any] = Field(default_factory=dict)

    @field_validator("shape")
    @classmethod
    def _is_a_schema(cls, shape: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError

        try:
            Draft202012Validator.check_schema(shape)
        except SchemaError as error:
            raise ValueError(f"is no JSON schema ({error.message}, at {error.json_path})") from None
        return shape


class MathsRule(TimedRule):
    """1 for a response whose final answer equals the row's `field` as mathematics (math-verify)."""

    kind: Literal["maths"] = "maths"
    field: str = "answer"


class FunctionRule(TimedRule):
    """What a function of the user's returns, any number: `package.module:name` or `file.py:name`. It is given what its
    parameters name, of `text`, `tokens`, `row` and `messages`; with `batch` lists of them, and it returns a list."""

    kind: Literal["function"] = "function"
    function: str
    batch: bool = False

    @field_validator("function")
    @classmethod
    def _names_code(cls, function: str) -> str:
        if not is_code(function):
            raise ValueError(f"{shown(function)} names no function; write package.module:name or file.py:name")
        return function


class ProgramRule(Rule):
    """A rule that runs the response's program on the row's tests in a sandbox: `at_once` responses of a request at the
    same time. The limits are those of rewards/sandbox/limits.py."""

    field: str = "tests"
    language: Literal["python"] = "python"
    code: Where = "last_block"
    tolerance: Annotated[float, Field(ge=0.0)] = 1e-6
    cpu_seconds: Positive = 4
    wall_seconds: Seconds = 8.0
    total_seconds: Seconds = 16.0
    memory_mib: Annotated[int, Field(ge=64, le=2**20)] = 512
    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    at_once: Annotated[int, Field(ge=1, le=256)] = 4

    def longest(self, responses: int) -> float:
        return self.total_seconds * ceil(responses / self.at_once)

    @model_validator(mode="after")
    def _has_time(self) -> ProgramRule:
        if self.wall_seconds > self.total_seconds:
            raise ValueError(
                f"wall_seconds {self.wall_seconds:g} of one case exceed total_seconds {self.total_seconds:g} of all; "
                "raise the latter"
            )
        return self


class CodeRule(ProgramRule):
    """1 for a program that passes all tests of its row, else 0; with `partial` the share of tests that it passes."""

    kind: Literal["code"] = "code"
    partial: bool = False


class MinimalEditRule(ProgramRule):
    """1 - `charge` x excess for a program that passes all tests, `failed` for any other. Excess: the share of tokens
    that it changes of the row's `given` code, less what the row's `reference` fix changes, at least 0."""

    kind: Literal["minimal_edit"] = "minimal_edit"
    given: str = "given"
    reference: str = "solution"
    charge: Annotated[float, Field(ge=0.0)] = 1.0
    failed: float = 0.0


class OwnRule(TimedRule):
    """A function of (rule, text, tokens, row) named by `kind` itself; `text`, `field`, `low` and `high` are its own to
    use."""

    kind: Annotated[str, or_own(*KINDS)]
    text: str | None = None
    field: str = "answer"
    low: NonNegative = 0
    high: Positive = 1_000_000


def _kind_of(tree: Any) -> str:
    """The tag of a rule. An entry with a function and no kind is a `function`; an unknown kind is refused as code."""
    if isinstance(tree, Rule):
        return tree.kind if tree.kind in KINDS else "own"
    kind = tree.get("kind", "function" if "function" in tree else None) if isinstance(tree, Mapping) else None
    return kind if isinstance(kind, str) and kind in KINDS else "own"


AnyRule = Annotated[
    Annotated[LengthRule, Tag("length")]
    | Annotated[OverlongRule, Tag("overlong")]
    | Annotated[ContainsRule, Tag("contains")]
    | Annotated[RegexRule, Tag("regex")]
    | Annotated[ExactRule, Tag("exact")]
    | Annotated[MatchRule, Tag("match")]
    | Annotated[JsonRule, Tag("json_schema")]
    | Annotated[MathsRule, Tag("maths")]
    | Annotated[FunctionRule, Tag("function")]
    | Annotated[CodeRule, Tag("code")]
    | Annotated[MinimalEditRule, Tag("minimal_edit")]
    | Annotated[OwnRule, Tag("own")],
    Discriminator(_kind_of),
]


def component_names(rules: Sequence[Rule], model: bool) -> tuple[str, ...]:
    """The components of a reward in order, the reward model's last: a rule's `name`, or its kind, numbered where an
    earlier component has that name. Raises ValueError where two rules are given one name."""
    given = Counter(rule.name for rule in rules if rule.name)
    given.update([MODEL] if model else [])
    if twice := [name for name, count in given.items() if count > 1]:
        raise ValueError(f"two components are named {twice[0]!r}; give one of them another name")
    names: list[str] = []
    for rule in rules:
        names.append(rule.name or _free(rule.kind, {*names, *given}))
    return (*names, MODEL) if model else tuple(names)


def _free(kind: str, taken: set[str]) -> str:
    numbered = (f"{kind}_{number}" for number in range(2, len(taken) + 3))
    return kind if kind not in taken else next(name for name in numbered if name not in taken)


def _refuse_crossed(low: int, high: int) -> None:
    if low > high:
        raise ValueError(f"low {low} is above high {high}; no response could be that long")


def _refuse_pattern(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{shown(text)} is no regular expression ({error})") from None
