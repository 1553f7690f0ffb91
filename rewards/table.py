"""The table of rewards: what each kind of `reward.rules` does. A new kind is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from configs.reward_rules import KINDS, FunctionRule, MatchRule, OwnRule, Rule
from rewards.code import code, tested
from rewards.function import function, imported_once, is_async, own
from rewards.json_schema import json_schema
from rewards.json_schema import prepare as read_schema
from rewards.length import length, overlong
from rewards.maths import maths
from rewards.maths import prepare as load_math_verify
from rewards.minimal_edit import minimal_edit
from rewards.response import Reward, singly
from rewards.text import contains, exact, match, regex


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of reward does. `values(rule, responses)` gives a number or a Rejection for each response, and raises
    nothing for what a response says.

    `apart(rule)`: it runs in the process beside the worker, under `rule.seconds`: code of the user's, and what may not
    end. There it is given one response at a time, or all where `together(rule)`; `prepare(rule)` runs first, with no
    deadline but that of the process's start.
    """

    values: Reward
    apart: Callable[[Any], bool] = lambda rule: False
    together: Callable[[Any], bool] = lambda rule: False
    prepare: Callable[[Any], Any] = lambda rule: None


def _always(rule: Any) -> bool:
    return True


def _extracts(rule: MatchRule) -> bool:
    return rule.extract is not None


def _at_once(rule: FunctionRule) -> bool:
    return rule.batch or is_async(imported_once(rule.function))


TABLE: dict[str, Kind] = {
    "length": Kind(singly(length)),
    "overlong": Kind(singly(overlong)),
    "contains": Kind(singly(contains)),
    "exact": Kind(singly(exact)),
    "match": Kind(singly(match), apart=_extracts),
    "regex": Kind(singly(regex), apart=_always),
    "json_schema": Kind(singly(json_schema), apart=_always, prepare=read_schema),
    "maths": Kind(singly(maths), apart=_always, prepare=load_math_verify),
    "code": Kind(tested(code)),
    "minimal_edit": Kind(tested(minimal_edit)),
    "function": Kind(function, _always, _at_once, prepare=lambda rule: imported_once(rule.function)),
}
OWN = Kind(own, apart=_always, prepare=lambda rule: imported_once(rule.kind))

assert TABLE.keys() == set(KINDS), "every kind of the recipe has its line here"


def kind_of(rule: Rule) -> Kind:
    """The entry of a rule; of a rule whose kind is code of the user's own, `OWN`."""
    return OWN if isinstance(rule, OwnRule) else TABLE[rule.kind]
