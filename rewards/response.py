"""What a reward is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Response:
    """One response to be rewarded. `text` is decoded without special tokens; `tokens` counts them, the end token
    included; `row` is its prompt's row of the data."""

    text: str
    tokens: int
    row: Mapping[str, Any]

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        """The chat that the response answers, as the row has it."""
        if chat := self.row.get("messages"):
            turns = list(chat)
            return turns[:-1] if turns[-1].get("role") == "assistant" else turns
        return [{"role": "user", "content": self.row.get("prompt", "")}]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a response has no reward; the sample is left out of training under this reason."""

    reason: str


Value = float | Rejection

Reward = Callable[[Any, Sequence[Response]], Sequence[Value]]  # (rule, responses) -> a value for each


def singly(value: Callable[[Any, Response], float]) -> Reward:
    """A reward of many responses from one of a single response. What that raises rejects its response."""

    def values(rule: Any, responses: Sequence[Response]) -> list[Value]:
        return [_tried(value, rule, response) for response in responses]

    return values


def _tried(value: Callable[[Any, Response], float], rule: Any, response: Response) -> Value:
    try:
        return float(value(rule, response))
    except Exception as error:  # a response may be anything
        return Rejection(described(error))


def described(error: BaseException) -> str:
    """An exception in one line, at most 200 characters."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:200] if said else type(error).__name__
