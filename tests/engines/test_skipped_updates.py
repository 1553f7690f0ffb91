"""Loss or gradient that is not finite on one rank of two, real learners, every ZeRO stage: no rank takes the update."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.wire.jobs import LearnerSpec
from actors.wire.records import BrokenWeights, Request, Score, pack_samples, pack_scores
from configs.schema import Recipe
from objectives.schedule import dials_at
from orchestrator import checkpoint
from orchestrator.preflight.files import read_inputs
from orchestrator.samples.buffer import Scored
from orchestrator.stage import NotFinite
from orchestrator.surface.outcome import first_of
from orchestrator.weights.learner_group import LearnerGroup
from tests.engines.shared import DATASET, Engines, Watcher

acceptance = pytest.mark.acceptance
LEARNERS: list[Any] = [  # under ZeRO-0 in float32 the learner takes the gradient's norm, elsewhere DeepSpeed does
    {"zero_stage": 0, "dtype": "float32"},
    {"zero_stage": 2, "dtype": "bfloat16"},
    {"zero_stage": 3, "dtype": "float32"},
    pytest.param({"zero_stage": 0, "dtype": "bfloat16"}, marks=acceptance),
    pytest.param({"zero_stage": 1, "dtype": "bfloat16"}, marks=acceptance),
    pytest.param({"zero_stage": 2, "dtype": "float32"}, marks=acceptance),
    pytest.param({"zero_stage": 3, "dtype": "bfloat16"}, marks=acceptance),
    pytest.param({"zero_stage": 2, "dtype": "bfloat16", "offload_optimizer": "cpu"}, marks=acceptance),
    pytest.param({"zero_stage": 3, "dtype": "bfloat16", "offload_optimizer": "cpu"}, marks=acceptance),
]
DISTILLED = {"prefix": "student", "target": "teacher", "support": "sampled", "reverse_weight": 1.0}


def batch(spoiled: str | None = None, score: float = -4.0) -> list[Scored]:
    """Eight responses with a teacher's scores of their tokens; those of one are NaN."""
    rng = np.random.default_rng(3)
    requests = [Request(f"{i:08d}.000", f"{i:08d}", 0, i, [5, 6, 7 + i]) for i in range(8)]
    rows = [r.answered(rng.integers(9, 200, 12).tolist(), [-5.0] * 12, "stop", [0] * 12) for r in requests]
    payload, header = pack_samples(rows)
    given = {r.uid: np.full(12, np.nan if r.uid == spoiled else score, np.float32) for r in requests}
    scores, _ = pack_scores([Score(uid, logprobs) for uid, logprobs in given.items()], {}, "float32")
    return [Scored(h, payload, {"teacher": (scores,)}) for h in header.samples]


def specified(recipe: Recipe) -> LearnerSpec:
    path, vocabulary = recipe.path_of("student"), read_inputs(recipe).vocabulary
    updates, averages = recipe.batch.updates, {"ema": 0.5}
    return LearnerSpec(
        recipe.learner, recipe.objective, path, vocabulary, 4, 0, "float32", updates=updates, averages=averages
    )


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda config: "-".join(str(v) for v in config.values()))
def test_no_rank_takes_an_update_that_is_not_finite_on_one(engines: Engines, learner: dict[str, Any]) -> None:
    """And what is learned behind it, with Adam's moments and averages, is what is learned without it."""
    optimizer = {"name": "adamw", "lr": 1e-2, "max_grad_norm": 1.0}
    changed = learner | {"optimizer": optimizer}
    recipe, pool = engines.recipe(objective=DISTILLED, learner=changed, batch={"updates": 2}), engines.learners[2]
    steps = [(1, None), (2, "00000005.000"), (3, None)]

    async def learned(steps: list[tuple[int, str | None]]) -> tuple[list[int], list[bytes]]:
        group, skipped, bits = LearnerGroup(recipe, pool), [], []
        await group.start(specified(recipe))
        for step, spoiled in steps:
            metrics = await group.step(batch(spoiled), step, 0, dials_at(recipe.objective, step), None)
            skipped.append(metrics["updates_skipped"])
        for model in (None, "ema"):
            _, buckets = await group.publish(model)
            bits += [np.asarray(await pool.transport.value(bucket)).tobytes() for bucket in buckets]
        return skipped, bits

    skipped, sick = engines.runner.run(learned(steps))
    assert skipped == [0, 2, 0]
    assert sick == engines.runner.run(learned([steps[0], steps[2]]))[1]


@dataclass
class Notices(Watcher):
    notices: list[str] = field(default_factory=list)

    def notice(self, text: str) -> None:
        self.notices.append(text)


def failed(engines: Engines, **learner: Any) -> tuple[str, list[dict[str, Any]], list[str], Path]:
    """What a run on a dataset says as its learner ends it, its lines, what was said before, and its directory. Nothing
    that is not finite is written, or exported."""
    data, watcher = {"prompts": str(engines.prompts["data"])}, Notices()
    recipe = engines.recipe(**DATASET, data=data, run={"steps": 8}, checkpoint={"every": 1}, learner=learner)
    with pytest.raises(BaseException) as failure:
        engines.run(recipe, watcher)
    error, directory = first_of(failure.value), Path(recipe.run.root) / recipe.run.name
    assert isinstance(error, NotFinite) and "learner" in str(error) and "00000" in str(error)
    metrics = directory / "metrics.jsonl"
    text = metrics.read_text() if metrics.exists() else ""
    assert "NaN" not in text and "Infinity" not in text and not (directory / "model").exists()
    return str(error), [json.loads(line) for line in text.splitlines()], watcher.notices, directory


@pytest.mark.parametrize(
    ("zero_stage", "dtype"),
    [(2, "float32"), *(pytest.param(z, d, marks=acceptance) for d in ("float32", "bfloat16") for z in (0, 3))],
)
def test_a_rate_that_is_far_too_high_ends_the_run_and_exports_nothing(
    engines: Engines, zero_stage: int, dtype: str
) -> None:
    """The weights that it leads to are finite, and no loss of theirs is: the newest checkpoint is of the last step that
    moved."""
    optimizer = {"name": "sgd", "lr": 1e30, "max_grad_norm": 0.0}
    said, lines, notices, directory = failed(engines, zero_stage=zero_stage, dtype=dtype, optimizer=optimizer)
    moved = [line["step"] for line in lines if not line["updates_skipped"]]
    assert "3 steps in a row" in said and len(lines) - len(moved) == 3 == sum("skipped" in text for text in notices)
    saved = checkpoint.latest(directory)
    assert saved and saved.state["step"] == max(moved)


@pytest.mark.parametrize("zero_stage", [2, pytest.param(0, marks=acceptance), pytest.param(3, marks=acceptance)])
def test_an_update_from_a_finite_gradient_that_breaks_the_weights_is_said(engines: Engines, zero_stage: int) -> None:
    """A teacher that is far off makes the gradient large, and the rate makes the update infinite."""
    learner = {"zero_stage": zero_stage, "optimizer": {"name": "sgd", "lr": 1e36, "max_grad_norm": 0.0}}
    recipe = engines.recipe(objective=DISTILLED | {"logprob_floor": -1e6}, learner=learner)

    async def step() -> None:
        group = LearnerGroup(recipe, engines.learners[2])
        await group.start(specified(recipe))
        await group.step(batch(score=-1e6), 1, 0, dials_at(recipe.objective, 1), None)

    with pytest.raises(BrokenWeights, match="step 1 led to weights that are not finite"):
        engines.runner.run(step())
