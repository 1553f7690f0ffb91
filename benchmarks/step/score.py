"""The torch scorer alone: one packed forward pass, and what each support reads of the vocabulary."""

from __future__ import annotations

import torch

from actors.scoring.engine import Item
from actors.scoring.torch_engine import TorchEngine
from actors.wire.records import ScoreRequest
from benchmarks.step.case import Case, sequences
from benchmarks.step.models import Built


class Engine(TorchEngine):
    """The scorer's engine around a model that is built already."""

    def __init__(self, built: Built, device: torch.device) -> None:
        self._model, self._handling, self._vocabulary = built.model, built.handling, built.vocabulary
        self._device, self.hidden_dtype = device, str(built.model.dtype).removeprefix("torch.")


def cases(built: Built, device: torch.device, packs: list[int]) -> list[Case]:
    supports = {"sampled": ScoreRequest("sampled"), "topk": ScoreRequest("topk", topk=64), "full": ScoreRequest("full")}
    return [_case(built, device, count, *support) for support in supports.items() for count in packs]


def _case(built: Built, device: torch.device, count: int, support: str, request: ScoreRequest) -> Case:
    engine, rows = Engine(built, device), sequences(count, built.vocabulary)
    items = [Item(f"{i}.0", prompt, response, 0, True, []) for i, (prompt, response) in enumerate(rows)]

    def run() -> None:
        built.model.eval()
        engine._score(items, request)

    lengths = [len(prompt) + len(response) for prompt, response in rows]
    head = 2.0 * built.vocabulary * built.width * sum(len(response) for _, response in rows)
    flops = 2.0 * built.matrices * sum(lengths) + head + built.attention_flops(lengths)
    weights = sum(p.nbytes for p in built.model.parameters())
    return Case("score", f"{support} {sum(lengths)}", run, flops, weights, sum(lengths))
