"""One thing to measure, and the batch that all cases share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

PROMPT, RESPONSE = 40, 48  # tokens of each sequence


@dataclass(frozen=True)
class Case:
    """`flops` and `bytes` are the least that the work takes; `tokens` go through the model, prompts included."""

    role: str
    name: str
    run: Callable[[], object]
    flops: float
    bytes: float
    tokens: int

    @property
    def key(self) -> str:
        return f"{self.role} {self.name}"


def sequences(count: int, vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Random (prompt ids, response ids)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (count, PROMPT + RESPONSE), generator=generator).tolist()
    return [(row[:PROMPT], row[PROMPT:]) for row in ids]
