"""Reward of a format: the response is JSON that a schema allows."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, NoReturn

from configs.reward_rules import JsonRule
from rewards.response import Response

_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n[ \t]*```\s*", re.DOTALL | re.IGNORECASE)


def json_schema(rule: JsonRule, response: Response) -> float:
    """Whether the response, alone or in one fenced block, is JSON that the schema allows. No reference is fetched."""
    fenced = _FENCED.fullmatch(response.text)
    try:
        found = json.loads(fenced.group(1) if fenced else response.text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return float(_validator(json.dumps(rule.shape)).is_valid(found))


def prepare(rule: JsonRule) -> None:
    """Read the schema before any response waits for it."""
    _validator(json.dumps(rule.shape))


@lru_cache(maxsize=16)
def _validator(shape: str) -> Any:
    """An empty registry: a reference to a URL is an error and never a request."""
    from jsonschema import Draft202012Validator  # only recipes that use it pay for it
    from referencing import Registry

    return Draft202012Validator(json.loads(shape), registry=Registry())


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")
