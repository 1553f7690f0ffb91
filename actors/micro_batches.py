"""From headers to ranks and micro-batches, by token budget. Pure: no tensors, no actors.

The plan is a function of the items alone, so that a resumed run and a run on other machines pack the same way.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class SampleSize(NamedTuple):
    """One sample as the packer sees it: `tokens` counts prompt and response."""

    uid: str
    tokens: int
    loss_tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`ranks[r][m]` are the uids of micro-batch m on rank r. Every rank has equally many micro-batches, since a
    collective needs every rank; an empty one is a placeholder. `loss_tokens` is global."""

    ranks: tuple[tuple[tuple[str, ...], ...], ...]
    loss_tokens: int


def plan(items: Sequence[SampleSize], ranks: int, tokens_per_microbatch: int) -> Plan:
    """Best-fit decreasing into micro-batches, then longest-first onto ranks.

    A sample longer than the budget has a micro-batch of its own. Order of `items` does not matter.
    """
    bins = _fit(sorted(items, key=lambda item: (-item.tokens, item.uid)), tokens_per_microbatch)
    while len(bins) % ranks:
        _split_largest(bins)
    shares: list[list[list[SampleSize]]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    order = sorted(enumerate(bins), key=lambda numbered: (-_tokens(numbered[1]), numbered[0]))
    for start in range(0, len(order), ranks):
        by_load = sorted(range(ranks), key=lambda r: (loads[r], r))
        for rank, (_, packed) in zip(by_load, order[start : start + ranks], strict=True):
            shares[rank].append(packed)
            loads[rank] += _tokens(packed)
    return Plan(
        ranks=tuple(tuple(tuple(sorted(i.uid for i in b)) for b in share) for share in shares),
        loss_tokens=sum(item.loss_tokens for item in items),
    )


def take_by_budget(lengths: Sequence[int], budget: int) -> int:
    """How many of the first items fit a budget of tokens; at least one, so that a long item cannot starve."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > budget and count:
            return count
    return len(lengths)


def _fit(items: Sequence[SampleSize], budget: int) -> list[list[SampleSize]]:
    """Put each item into the fullest bin that holds it."""
    bins: list[list[SampleSize]] = []
    gaps: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for item in items:
        place = bisect_left(gaps, (item.tokens, -1))
        if place < len(gaps):
            gap, index = gaps.pop(place)
        else:
            gap, index = budget, len(bins)
            bins.append([])
        bins[index].append(item)
        if gap > item.tokens:
            insort(gaps, (gap - item.tokens, index))
    return bins or [[]]


def _split_largest(bins: list[list[SampleSize]]) -> None:
    largest = max(bins, key=lambda b: (len(b) > 1, _tokens(b)))
    moved = largest[1::2]
    del largest[1::2]
    bins.append(moved)


def _tokens(items: Sequence[SampleSize]) -> int:
    return sum(item.tokens for item in items)
