"""The reward of responses: the weighted sum of all rules, every part kept, and the reasons of those without one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from configs.reward_rules import Rule, component_names
from rewards.apart.process import Apart
from rewards.response import Rejection, Response, Value
from rewards.table import kind_of


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A response's components by component, unweighted, and their weighted sum; or why it has none."""

    components: dict[str, float]
    reward: float | None
    rejection: str | None = None


def score(rules: Sequence[Rule], responses: Sequence[Response], apart: Apart) -> list[Rewarded]:
    """The reward of each response by the rules. A response that one rule rejects has no reward, and says which rule.
    Raises RuntimeError if `apart` cannot be started."""
    names = component_names(rules, model=False)
    columns = [_values(rules, number, responses, apart) for number in range(len(rules))]
    rows = zip(*columns, strict=True) if columns else [() for _ in responses]
    return [_sum(rules, names, values) for values in rows]


def _values(rules: Sequence[Rule], number: int, responses: Sequence[Response], apart: Apart) -> Sequence[Value]:
    rule = rules[number]
    kind = kind_of(rule)
    values = apart.values(rules, number, responses) if kind.apart(rule) else kind.values(rule, responses)
    assert len(values) == len(responses), "a kind gives a value for each response"
    return values


def _sum(rules: Sequence[Rule], names: Sequence[str], values: Sequence[Value]) -> Rewarded:
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Rejection):
            return Rewarded({}, None, f"reward {name}: {value.reason}")
        if not math.isfinite(value):
            return Rewarded({}, None, f"reward {name}: it is {value}")
    components = {
        name: float(value) for name, value in zip(names, values, strict=True) if not isinstance(value, Rejection)
    }
    return Rewarded(components, sum(rule.weight * components[name] for rule, name in zip(rules, names, strict=True)))
