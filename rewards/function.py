"""Rewards by a function of the user's own: what it is called with, and what it may return.

It runs in the process apart, so it may raise, hang or end its process.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any

from configs.names.own_code import imported
from configs.reward_rules import FunctionRule, OwnRule
from rewards.response import Rejection, Response, Value, described

GIVEN = ("text", "tokens", "row", "messages")  # what a function may ask for by the names of its parameters


def function(rule: FunctionRule, responses: Sequence[Response]) -> list[Value]:
    """Call the function for each response, or with `batch` once. Calls of an async function run at the same time, each
    for at most `rule.seconds`."""
    call = imported_once(rule.function)
    if rule.batch:
        return _of_batch(rule, call, responses)
    if is_async(call):
        return asyncio.run(_all(rule, call, responses))
    return [_tried(call, response) for response in responses]


def own(rule: OwnRule, responses: Sequence[Response]) -> list[Value]:
    """Call a function of (rule, text, tokens, row) for each response."""
    call = imported_once(rule.kind)
    return [_tried(lambda text, tokens, row: call(rule, text, tokens, row), response) for response in responses]


@lru_cache(maxsize=64)
def imported_once(name: str) -> Callable[..., Any]:
    """The function that a rule names. Raises whatever its import raises."""
    return imported(name)


def is_async(call: Callable[..., Any]) -> bool:
    """Whether calls give coroutines."""
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)


def wanted(call: Callable[..., Any]) -> tuple[str, ...]:
    """The names of GIVEN that a function's parameters ask for. Raises ValueError for a parameter that nothing fills,
    and for a function that asks for nothing."""
    parameters = inspect.signature(call).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return GIVEN
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    if unknown := [p.name for p in needed if p not in named or p.name not in GIVEN]:
        raise ValueError(f"nothing fills its parameter {unknown[0]!r}; it may ask for {', '.join(GIVEN)} by name")
    asked = tuple(p.name for p in named if p.name in GIVEN)
    if not asked:
        raise ValueError(f"it asks for nothing; give it parameters among {', '.join(GIVEN)}")
    return asked


def number(returned: Any) -> float:
    """A returned value as a number: a float, an int, a truth value, or numpy's or torch's. Raises ValueError."""
    if returned is None:
        raise ValueError("it returned None; return a number")
    if not isinstance(returned, Real) and (isinstance(returned, str | bytes) or not hasattr(returned, "__float__")):
        raise ValueError(f"it returned {type(returned).__name__} {str(returned)[:60]!r}; return a number")
    return float(returned)


def _tried(call: Callable[..., Any], response: Response) -> Value:
    try:
        return number(call(**_arguments(call, response)))
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        return Rejection(described(error))


async def _all(rule: FunctionRule, call: Callable[..., Any], responses: Sequence[Response]) -> list[Value]:
    return list(await asyncio.gather(*(_awaited(rule, call, response) for response in responses)))


async def _awaited(rule: FunctionRule, call: Callable[..., Any], response: Response) -> Value:
    try:
        return number(await _within(rule, call(**_arguments(call, response))))
    except (Exception, SystemExit) as error:
        return _rejected(error)


def _of_batch(rule: FunctionRule, call: Callable[..., Any], responses: Sequence[Response]) -> list[Value]:
    asked = [_arguments(call, response) for response in responses]
    lists = {name: [given[name] for given in asked] for name in asked[0]}
    try:
        returned = asyncio.run(_within(rule, call(**lists))) if is_async(call) else call(**lists)
        if not hasattr(returned, "__len__") or isinstance(returned, str | bytes | Mapping):
            raise ValueError(f"it returned {type(returned).__name__}; return a list with a number for each response")
        if len(returned) != len(responses):
            raise ValueError(f"it returned {len(returned)} values for {len(responses)} responses")
        return [_number_or_rejection(value) for value in returned]
    except (Exception, SystemExit) as error:
        return [_rejected(error)] * len(responses)


class _Late(Exception):
    """An awaited answer did not come in time; a function's own TimeoutError is none."""


async def _within(rule: FunctionRule, answer: Any) -> Any:
    """What an awaitable gives. Raises _Late after the rule's seconds."""
    limit = asyncio.timeout(rule.seconds)
    try:
        async with limit:
            return await answer
    except TimeoutError:
        if limit.expired():
            raise _Late(late_by(rule.seconds)) from None
        raise


def _rejected(error: BaseException) -> Rejection:
    return Rejection(str(error) if isinstance(error, _Late) else described(error))


def _number_or_rejection(value: Any) -> Value:
    try:
        return number(value)
    except Exception as error:  # a user's own type may raise anything
        return Rejection(described(error))


def _arguments(call: Callable[..., Any], response: Response) -> dict[str, Any]:
    return {name: getattr(response, name) for name in _wanted_once(call)}


@lru_cache(maxsize=64)
def _wanted_once(call: Callable[..., Any]) -> tuple[str, ...]:
    return wanted(call)


def late_by(seconds: float) -> str:
    """The reason of a response whose reward did not come in time."""
    return f"no reward within {seconds:g} s"
