"""The base scored by the learner itself, against the same model behind a scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.learning.adapting.adapters import Adapters
from actors.learning.adapting.base_scores import BaseScores
from actors.learning.batch import Batch
from actors.learning.readings import Readings
from actors.learning.student import Student
from actors.models import causal_lm
from actors.models.handling import PLAIN
from actors.models.stored import read_stored
from actors.scoring.engine import Item
from actors.scoring.torch_engine import TorchEngine
from actors.wire.jobs import Share, Total
from actors.wire.records import Request, ScoreRequest, pack_samples, pack_scores
from configs.objective import Objective
from configs.roles.lora import Lora
from configs.roles.scorer import Scorer
from objectives import objective
from objectives.schedule import dials_at

VOCABULARY, CHUNK = 259, 4
RESPONSES = {"a": [11, 12, 70], "b": [13, 14, 15, 2], "c": [16, 17], "d": [0]}
PROMPTS = {uid: [9, 5, 6, 7, 8, 30 + i] for i, uid in enumerate(RESPONSES)}
REFERENCE = {"model": "base", "beta": 0.5, "placement": "reward_token"}
SAMPLES = [
    Request(uid, uid, 0, 1, [5, 6, 7, 8]).answered(ids, [-1.0] * len(ids), "stop", [0] * len(ids))
    for uid, ids in RESPONSES.items()
]


def scored(model: Path, support: str, prompts: Mapping[str, list[int]]) -> tuple[Any, TorchEngine]:
    engine = TorchEngine(Scorer(dtype="float32"), model, VOCABULARY)
    items = [Item(s.uid, prompts.get(s.uid, s.prompt_ids), s.response_ids, 0, True, []) for s in SAMPLES]
    scores = asyncio.run(engine.score(items, ScoreRequest(support)))
    return pack_scores(scores, {}, engine.hidden_dtype)[0], engine


class Side:
    """One pass of a student with adapters; `own`: the learner itself scores the base."""

    def __init__(self, config: Objective, model: Path, prompts: Mapping[str, list[int]], own: bool) -> None:
        self.share = share(config)
        plain = causal_lm.load_model(model, "float32")
        adapters = Adapters(plain, Lora(rank=4, targets=("q_proj", "down_proj")), model, read_stored(model), seed=0)
        for i, parameter in enumerate(adapters.trained()):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
        full = frozenset(objective.full_slots(config))
        base = BaseScores(plain, adapters, PLAIN, VOCABULARY, CHUNK, full) if own else None
        self.student = Student(plain, objective.build(config), VOCABULARY, CHUNK, PLAIN, base=base)
        payloads = [pack_samples(SAMPLES)[0]]
        if own:
            self.share = replace(self.share, base_prompts={"base": prompts} if prompts else {})
        else:
            payload, engine = scored(model, config.support_of["base"], prompts)
            payloads.append(payload)
            self.share = replace(self.share, scores={uid: {"base": (1,)} for uid in RESPONSES})
            self.student.heads["base", 0] = causal_lm.projection_from(engine.projection(), torch.device("cpu"))
        self.batch = Batch(self.share, payloads, config, True, base=("base",) if own else ())
        pack, targets = self.batch.micro_batch(tuple(RESPONSES))
        self.loss, sums, streams = self.student(pack, targets, self.share.dials)
        self.loss.backward()
        self.read = Readings(self.batch)
        self.read.add(tuple(RESPONSES), targets, self.loss, sums, streams)
        self.sums = {name: float(value) for name, value in sums.items()}

    @property
    def gradient(self) -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in self.student.parameters() if p.grad is not None])


def share(config: Objective) -> Share:
    uids = tuple(RESPONSES)
    return Share(
        step=1,
        version=0,
        micro_batches=(uids,),
        loss_tokens=10,
        totals={term: Total(10, 4) for term in config.terms},
        constant=100,
        dials=dials_at(config, 1),
        rows=dict.fromkeys(uids, 0),
        advantages=dict.fromkeys(uids, 1.0),
    )


@pytest.mark.parametrize("prompts", [{}, PROMPTS], ids=["own", "privileged"])
@pytest.mark.parametrize(
    "config",
    [
        Objective(target="base", support="sampled"),
        Objective(target="base", support="full", reverse_weight=0.7),
        Objective.model_validate({"target": "none", "outcome": {"weight": 1.0}, "reference": REFERENCE}),
    ],
    ids=["sampled", "full", "reference"],
)
def test_it_is_the_loss_the_gradient_and_the_readings_that_a_scorer_gives(
    models: dict[str, Path], config: Objective, prompts: dict[str, list[int]]
) -> None:
    own, other = (Side(config, models["student"], prompts, own) for own in (True, False))
    torch.testing.assert_close(own.loss, other.loss, rtol=1e-5, atol=1e-6)
    assert own.gradient.abs().max() > 0
    torch.testing.assert_close(own.gradient, other.gradient, rtol=1e-4, atol=1e-6)
    assert own.sums == pytest.approx(other.sums, rel=1e-4, abs=1e-5)
    for mine, theirs in zip(own.read._log_ratios, other.read._log_ratios, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    for uid in RESPONSES:
        found = [s.batch._sampled(("base",), uid, s.read.student) for s in (own, other)]
        np.testing.assert_allclose(found[0], found[1], atol=1e-4)
        if config.reference:
            sums = [s.batch.reference_sum(uid, s.read.student) for s in (own, other)]
            assert sums[0] == pytest.approx(sums[1], abs=1e-4)
