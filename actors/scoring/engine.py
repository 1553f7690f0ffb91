"""What a scorer asks of an engine, and of what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.wire.records import Score, ScoreRequest


@dataclass(frozen=True, slots=True)
class Item:
    """The new tokens of a response to score, behind the prompt it is scored with and the tokens before them."""

    uid: str
    prompt_ids: list[int]
    response_ids: list[int]  # so far
    start: int  # where the new ones begin
    last: bool  # none will follow
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
        """Tokens to put through a model that remembers the segments before."""
        return len(self.new_ids) if self.start else self.tokens


class Engine(Protocol):
    """What scores a batch. `hidden_dtype` names the bits of a Score's hidden states. One that is `continuous` forms its
    own batches of what it is given, whenever that comes."""

    hidden_dtype: str
    continuous: bool

    async def score(self, items: Sequence[Item], request: ScoreRequest) -> list[Score]: ...

    async def replace(self, tensors: dict[str, Any]) -> None: ...

    def projection(self) -> dict[str, Any]: ...

    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...

    def stop(self) -> None: ...
