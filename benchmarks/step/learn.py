"""The learner alone: forward and backward passes of the student, without the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actors.learning.student import Hidden, Student, Targets
from actors.models import causal_lm
from benchmarks.step.case import RESPONSE, Case, sequences
from benchmarks.step.models import Built
from configs.objective import Objective
from objectives import objective
from objectives.schedule import Dials
from objectives.tokens import Scores, Tokens

TEACHER = ("teacher", 0)


def cases(built: Built, device: torch.device, packs: list[int], chunk: int) -> list[Case]:
    """Sampled and full support, for packs of so many sequences."""
    return [_case(built, device, count, support, chunk) for support in ("sampled", "full") for count in packs]


def _case(built: Built, device: torch.device, count: int, support: str, chunk: int) -> Case:
    config = Objective.model_validate({"target": "teacher", "support": support, "reverse_weight": 1.0})
    student = Student(built.model, objective.build(config), built.vocabulary, chunk, built.handling)
    rows = sequences(count, built.vocabulary)
    pack, targets = causal_lm.pack(rows).to(device), Targets(_tokens(rows)).to(device)
    if support == "full":
        values = causal_lm.projection_of(built.model, built.vocabulary, built.handling)
        student.heads[TEACHER] = causal_lm.projection_from(values, device)
        places = torch.arange(len(targets.tokens))
        states = torch.randn(len(places), built.width).to(built.model.dtype)
        targets = Targets(targets.tokens, {"teacher": [Hidden.of(TEACHER, places, states).to(device)]})

    def run() -> None:
        built.model.train()
        loss: Any = student(pack, targets, Dials())[0]
        loss.backward()

    lengths = [len(prompt) + len(response) for prompt, response in rows]
    head = 2.0 * built.vocabulary * built.width * len(targets.tokens)
    flops = 6.0 * built.matrices * sum(lengths) + 3.0 * (head + built.attention_flops(lengths))
    flops += head if support == "full" else 0.0
    weights = sum(p.nbytes for p in built.model.parameters())
    moved = 3.0 * weights + 2.0 * sum(p.numel() * 4 for p in built.model.parameters())  # gradients are float32
    return Case("learn", f"{support} {sum(lengths)}", run, flops, moved, sum(lengths))


def _tokens(rows: list[tuple[list[int], list[int]]]) -> Tokens:
    ids = torch.tensor([token for _, response in rows for token in response])
    ones = torch.ones(len(ids))
    logprob: Tensor = -5.0 * torch.rand(len(ids), generator=torch.Generator().manual_seed(1))
    return Tokens(
        token_ids=ids,
        sequence=torch.arange(len(rows)).repeat_interleave(RESPONSE),
        position=torch.arange(RESPONSE).repeat(len(rows)),
        on=ones.bool(),
        weights={"distillation": ones / len(ids)},
        rollout_logprob=logprob,
        advantage=0.0 * ones,
        reward=0.0 * ones,
        drawn=ones.bool(),
        scores={"teacher": Scores(logprob=logprob)},
        lengths=(RESPONSE,) * len(rows),
    )
