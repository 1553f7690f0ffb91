"""Prompts of several sets by group index, in shares. Which set a group is of, and which of its prompts, follows from
the seed and the index alone."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from orchestrator.samples.prompts import Prompt, Prompts

BLOCK = 256  # groups in which each set has its share, rounded up or down
BLOCKS = 64  # orders of blocks to cache


class Mixture:
    """An endless sequence of prompts of `streams`, in `shares` that need not sum to 1.

    A block of BLOCK groups has as many of each set as systematic sampling from a random start gives, in random order:
    the expected number is the share, and none is off by more than one. A set's own prompts come in its own order.
    """

    def __init__(self, streams: Sequence[Prompts], shares: Sequence[float], seed: int) -> None:
        self._streams = streams
        self._seed = seed
        total = math.fsum(shares)
        self._bounds = [bound / total for bound in accumulate(shares[:-1])]  # the last is 1
        self._before = [[0] * len(streams)]  # prompts of each set before each block
        self._order = lru_cache(maxsize=BLOCKS)(self._shuffled)

    def __getitem__(self, index: int) -> Prompt:
        which, number = self.place(index)
        return self._streams[which][number]

    def place(self, index: int) -> tuple[int, int]:
        """The set of a group, and how many groups of that set come before it."""
        block, within = divmod(index, BLOCK)
        order = self._order(block)
        which = order[within]
        return which, self._counts_before(block)[which] + order[:within].count(which)

    def _counts_before(self, block: int) -> list[int]:
        while len(self._before) <= block:
            counts = self._counts(random.Random(self._label(len(self._before) - 1)))
            self._before.append([old + new for old, new in zip(self._before[-1], counts, strict=True)])
        return self._before[block]

    def _counts(self, draw: random.Random) -> list[int]:
        """Groups of each set in a block: of the points (k + u) / BLOCK those below each bound, less those before."""
        start = draw.random()
        below = [min(BLOCK, max(0, math.ceil(BLOCK * bound - start))) for bound in self._bounds] + [BLOCK]
        return [high - low for low, high in zip([0, *below], below, strict=False)]

    def _shuffled(self, block: int) -> list[int]:
        draw = random.Random(self._label(block))
        counts = Counter(dict(enumerate(self._counts(draw))))
        order = list(counts.elements())
        draw.shuffle(order)
        return order

    def _label(self, block: int) -> str:
        return f"{self._seed}/mixture/{block}"
