"""Loss or gradient that is not finite on one rank of two, real learners, every ZeRO stage: no rank takes the update."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.wire.jobs import LearnerSpec
from actors.wire.records import Request, Score, pack_samples, pack_scores
from configs.schema import Recipe
from objectives.schedule import dials_at
from orchestrator import checkpoint
from orchestrator.pools.pools import Pools
from orchestrator.preflight.files import read_inputs
from orchestrator.samples.buffer import Scored
from orchestrator.stage import NotFinite
from orchestrator.surface.outcome import first_of
from orchestrator.weights.learner_group import LearnerGroup
from tests.engines.ranks import Ranks, Strikes

pytestmark = pytest.mark.acceptance
slow = pytest.mark.system
LEARNERS: list[Any] = [
    {"zero_stage": 0, "dtype": "float32"},
    {"zero_stage": 2, "dtype": "bfloat16", "offload_optimizer": "cpu"},
    {"zero_stage": 3, "dtype": "float32"},
    pytest.param({"zero_stage": 0, "dtype": "bfloat16"}, marks=slow),
    pytest.param({"zero_stage": 1, "dtype": "bfloat16"}, marks=slow),
    pytest.param({"zero_stage": 2, "dtype": "float32"}, marks=slow),
    pytest.param({"zero_stage": 3, "dtype": "bfloat16", "offload_optimizer": "cpu"}, marks=slow),
]
DISTILLED = {"prefix": "student", "target": "teacher", "support": "sampled", "reverse_weight": 1.0}


@pytest.fixture(scope="module")
def ranks(
    ray_cluster: None,
    models: dict[str, Path],
    prompts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    runner: asyncio.Runner,
) -> Ranks:
    return Ranks(models, prompts, tmp_path_factory.mktemp("ranks"), runner)


@pytest.fixture(scope="module")
def pools(ranks: Ranks) -> Iterator[Pools]:
    """One learner for all of them, and what else a run of them has."""
    made = ranks.pools(ranks.recipe())
    ranks.runner.run(made.learner.members.start(1))
    yield made

    async def stop() -> None:
        await asyncio.gather(*(pool.members.stop() for pool in made.all().values()))

    ranks.runner.run(stop())


def batch(spoiled: str | None = None) -> list[Scored]:
    """Eight responses with a teacher's scores; those of one are NaN."""
    rng = np.random.default_rng(3)
    requests = [Request(f"{i:08d}.000", f"{i:08d}", 0, i, [5, 6, 7 + i]) for i in range(8)]
    rows = [r.answered(rng.integers(9, 200, 12).tolist(), [-5.0] * 12, "stop", [0] * 12) for r in requests]
    payload, header = pack_samples(rows)
    given = {r.uid: np.full(12, np.nan if r.uid == spoiled else -4.0, np.float32) for r in requests}
    scores, _ = pack_scores([Score(uid, logprobs) for uid, logprobs in given.items()], {}, "float32")
    return [Scored(h, payload, {"teacher": (scores,)}) for h in header.samples]


def specified(recipe: Recipe) -> LearnerSpec:
    path, vocabulary = recipe.path_of("student"), read_inputs(recipe).vocabulary
    updates, averages = recipe.batch.updates, {"ema": 0.5}
    return LearnerSpec(
        recipe.learner, recipe.objective, path, vocabulary, 4, 0, "float32", updates=updates, averages=averages
    )


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda config: "-".join(str(v) for v in config.values()))
def test_no_rank_takes_an_update_that_is_not_finite_on_one(ranks: Ranks, pools: Pools, learner: dict[str, Any]) -> None:
    """And what is learned behind it, with Adam's moments and averages, is what is learned without it."""
    optimizer = {"name": "adamw", "lr": 1e-2, "max_grad_norm": 1.0}
    recipe = ranks.recipe(
        models={"teacher": {"path": str(ranks.models["teacher"])}},
        scorer={"teacher": {"max_context_tokens": 128}},
        objective=DISTILLED,
        learner=learner | {"optimizer": optimizer},
        batch={"updates": 2},
    )
    steps = [(1, None), (2, "00000005.000"), (3, None)]

    async def learned(steps: list[tuple[int, str | None]]) -> tuple[list[int], list[bytes]]:
        group, skipped, bits = LearnerGroup(recipe, pools.learner), [], []
        await group.start(specified(recipe))
        for step, spoiled in steps:
            metrics = await group.step(batch(spoiled), step, 0, dials_at(recipe.objective, step), None)
            skipped.append(metrics["updates_skipped"])
        for model in (None, "ema"):
            _, buckets = await group.publish(model)
            bits += [np.asarray(await pools.learner.transport.value(bucket)).tobytes() for bucket in buckets]
        return skipped, bits

    skipped, sick = ranks.runner.run(learned(steps))
    assert skipped == [0, 2, 0]
    assert sick == ranks.runner.run(learned([steps[0], steps[2]]))[1]


def test_a_rate_that_is_far_too_high_ends_the_run_and_exports_nothing(ranks: Ranks, pools: Pools) -> None:
    recipe = ranks.recipe(
        run={"steps": 8}, learner={"zero_stage": 2, "optimizer": {"name": "sgd", "lr": 1e30, "max_grad_norm": 0.0}}
    )
    watcher = Strikes()
    with pytest.raises(BaseException) as failure:
        ranks.run(recipe, watcher, pools)
    error, directory = first_of(failure.value), Path(recipe.run.root) / recipe.run.name
    assert isinstance(error, NotFinite) and "learner" in str(error) and "00000" in str(error)
    text = (directory / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    moved = [line["step"] for line in lines if not line["updates_skipped"]]
    assert len(lines) - len(moved) == 3 == sum("skipped" in notice for notice in watcher.notices)
    saved = checkpoint.latest(directory)
    assert saved and saved.state["step"] == max(moved) and not (directory / "model").exists()
