"""From headers to ranks and micro-batches, by token budget. Pure: no tensors, no actors.

The plan is a function of the items alone, so that a resumed run and a run on other machines pack the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One sample as the packer sees it: `tokens` counts prompt and response."""

    uid: str
    tokens: int
    loss_tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`ranks[r][m]` are the uids of micro-batch m on rank r. Every rank has equally many micro-batches, since a
    collective needs every rank; an empty one is a placeholder. Denominators are global."""

    ranks: tuple[tuple[tuple[str, ...], ...], ...]
    loss_tokens: int
    sequences: int


def plan(items: Sequence[Item], ranks: int, tokens_per_microbatch: int) -> Plan:
    """First-fit decreasing into micro-batches, then longest-first onto ranks.

    A sample longer than the budget has a micro-batch of its own. Order of `items` does not matter.
    """
    bins = _fit(sorted(items, key=lambda item: (-item.tokens, item.uid)), tokens_per_microbatch)
    while len(bins) % ranks:
        _split_largest(bins)
    order = sorted(range(len(bins)), key=lambda b: (-_tokens(bins[b]), b))
    shares: list[list[list[Item]]] = [[] for _ in range(ranks)]
    for start in range(0, len(order), ranks):
        row = order[start : start + ranks]
        by_load = sorted(range(ranks), key=lambda r: (sum(map(_tokens, shares[r])), r))
        for rank, b in zip(by_load, row, strict=True):
            shares[rank].append(bins[b])
    return Plan(
        ranks=tuple(tuple(tuple(sorted(i.uid for i in b)) for b in share) for share in shares),
        loss_tokens=sum(item.loss_tokens for item in items),
        sequences=sum(item.loss_tokens > 0 for item in items),
    )


def take_by_budget(lengths: Sequence[int], budget: int) -> int:
    """How many of the first items fit a budget of tokens; at least one, so that a long item cannot starve."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > budget and count:
            return count
    return len(lengths)


def _fit(items: Sequence[Item], budget: int) -> list[list[Item]]:
    bins: list[list[Item]] = []
    for item in items:
        room = next((b for b in bins if _tokens(b) + item.tokens <= budget), None)
        if room is None:
            bins.append([item])
        else:
            room.append(item)
    return bins or [[]]


def _split_largest(bins: list[list[Item]]) -> None:
    largest = max(bins, key=lambda b: (len(b) > 1, _tokens(b)))
    moved = largest[1::2]
    del largest[1::2]
    bins.append(moved)


def _tokens(items: Sequence[Item]) -> int:
    return sum(item.tokens for item in items)
