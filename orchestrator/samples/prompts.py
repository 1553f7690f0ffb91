"""Prompts: a row with its token ids under every model, and the order of prompts in a run.

Response tokens are scored behind any of a prompt's ids and never tokenised again.
"""

from __future__ import annotations

import asyncio
import random
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

from configs.refusal import RecipeError

ORDERS = 1_000_000  # places of epoch orders to cache, 8 bytes each; at least two epochs
SUBSTITUTES = 1000  # rows looked at in place of one that cannot be used


@dataclass(frozen=True)
class Prompt:
    """A row, its prompt ids by model name, its response ids (end token included) if it has a response, and its line in
    the file."""

    row: Mapping[str, Any]
    ids: Mapping[str, list[int]]
    response_ids: list[int] | None
    line: int = 0


class Prompts(Protocol):
    """Prompts by group index."""

    def __getitem__(self, index: int, /) -> Prompt: ...


class MadeOnDemand:
    """Prompts that are read and tokenised when they are asked for: one at a time, whatever threads ask."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._one = threading.Lock()

    def __getitem__(self, index: int) -> Prompt:
        with self._one:
            return self._prompts[index]


async def taken(prompts: Prompts, indices: Sequence[int]) -> list[Prompt]:
    """The prompts of these indices; those that are yet to be made are made off the event loop."""
    if isinstance(prompts, MadeOnDemand):
        return await asyncio.to_thread(lambda: [prompts[index] for index in indices])
    return [prompts[index] for index in indices]


class PromptStream:
    """An endless sequence of prompts. Each epoch is a permutation by seed, so an index is the whole state. The orders
    of recent epochs are cached.

    With `weights`, one a prompt, an epoch has as many places, and a prompt as many of them as its share of the weights
    says, rounded up or down by the epoch. In place of a prompt that raises RecipeError stands another, drawn by seed
    and index.
    """

    def __init__(
        self, prompts: Sequence[Prompt], seed: int | str, shuffle: bool, weights: Sequence[float] | None = None
    ) -> None:
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle
        self._sums = array("d", accumulate(weights)) if weights is not None else None
        self._order = lru_cache(maxsize=max(2, ORDERS // max(1, len(prompts))))(self._shuffled)

    def __getitem__(self, index: int) -> Prompt:
        epoch, place = divmod(index, len(self._prompts))
        try:
            return self._prompts[self._order(epoch)[place]]
        except RecipeError:
            return self._substitute(index)

    def _substitute(self, index: int) -> Prompt:
        draw, fault = random.Random(f"{self._seed}/{index}/substitute"), None
        for _ in range(SUBSTITUTES):
            epoch, place = divmod(draw.randrange(2 * len(self._prompts)), len(self._prompts))
            try:
                return self._prompts[self._order(epoch)[place]]
            except RecipeError as error:
                fault = error
        raise RuntimeError(f"none of {SUBSTITUTES} prompts in a row can be used; the last: {fault}")

    def _shuffled(self, epoch: int) -> array[int]:
        order = self._places(epoch)
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order

    def _places(self, epoch: int) -> array[int]:
        """Which prompt stands at each place, before they are shuffled: by systematic sampling under weights."""
        count = len(self._prompts)
        if self._sums is None:
            return array("l", range(count))
        step, place, found = self._sums[-1] / count, 0, array("l")
        start = random.Random(f"{self._seed}/{epoch}/weights").random()
        for k in range(count):
            while place < count - 1 and self._sums[place] <= (start + k) * step:
                place += 1
            found.append(place)
        return found
