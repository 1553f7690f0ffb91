"""The interface between a scorer and its engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.wire.records import Score, ScoreRequest


@dataclass(frozen=True, slots=True)
class Item:
    """A response to score: its prompt under the scored model, and its tokens from `start` on."""

    uid: str
    prompt_ids: list[int]
    response_ids: list[int]  # so far
    start: int  # tokens before the new ones
    last: bool  # the response has ended
    support_ids: list[int]  # [new tokens * k] the student's own top k, where they were asked for

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def new_ids(self) -> list[int]:
        return self.response_ids[self.start :]

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.last

    @property
    def cost(self) -> int:
        """Tokens to put through a model that has the KV cache of earlier segments."""
        return len(self.new_ids) if self.start else self.tokens


class Engine(Protocol):
    """Scores a batch. `hidden_dtype` is the dtype of the bytes in Score.hidden. A `continuous` engine forms its own
    batches, so items are handed to it at once."""

    hidden_dtype: str
    continuous: bool

    async def score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]: ...

    async def replace(self, tensors: dict[str, Any]) -> None: ...

    def projection(self) -> dict[str, Any]: ...

    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...

    def stop(self) -> None: ...
