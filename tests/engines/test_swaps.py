"""A scorer's engine is given the weights of another directory while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors.wire.records import Sample, ScoreRequest, ScoreTable, SwapRefused, pack_samples
from orchestrator.pools.pool import Pool
from tests.engines.shared import Engines
from tests.tiny import build_model

SAMPLES = [
    Sample(
        uid=f"{i:08d}.000",
        group=f"{i:08d}",
        attempt=0,
        seed=0,
        prompt_ids=[1, 60 + i, 61],
        response_ids=[70 + i, 71, 72, 73, 74 + i, 2],
        rollout_logprobs=[-1.0] * 6,
        loss_spans=[(0, 6)],
        finish="stop",
        versions=[0] * 6,
    )
    for i in range(3)
]


@pytest.fixture(params=["torch", pytest.param("vllm", marks=pytest.mark.acceptance)])
def pool(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Pool]:
    """A scorer pool that serves the teacher, before and after."""
    found = engines.vllm_scorer if request.param == "vllm" else engines.pools.scorers["teacher"]
    yield found
    engines.runner.run(swapped(found, 0, engines.models["teacher"]))


async def swapped(pool: Pool, version: int, model: Path) -> None:
    await asyncio.gather(*(pool.call_member(m, "swap", version, str(model)) for m in pool.members))


def logprobs(engines: Engines, pool: Pool) -> tuple[np.ndarray, int]:
    """Of all samples, from one member, and the version that it says."""
    payload, _ = pack_samples(SAMPLES)

    async def work() -> tuple[pa.RecordBatch, int]:
        ref, header = await pool.call("score", payload, ScoreRequest("sampled", reusable=True), returns=2)
        assert not header.rejected
        return await pool.transport.value(ref), header.scorer_version

    table, version = engines.runner.run(work())
    scores = ScoreTable(table)
    return np.concatenate([scores.values(s.uid, "logprobs") for s in SAMPLES]), version


def test_a_swapped_scorer_scores_as_one_that_started_with_those_weights(
    engines: Engines, pool: Pool, tmp_path: Path
) -> None:
    """And one that cannot be given them scores as before: kept scores, too, are of the weights that are served."""
    teacher, _ = logprobs(engines, pool)
    poet, _ = logprobs(engines, engines.pools.scorers["poet"])
    assert np.abs(teacher - poet).max() > 0.1
    engines.runner.run(swapped(pool, 5, engines.models["poet"]))
    found, version = logprobs(engines, pool)
    assert version == 5
    np.testing.assert_allclose(found, poet, atol=1e-4)

    with pytest.raises(SwapRefused, match="half cannot be served"):
        engines.runner.run(swapped(pool, 6, cut_short(tmp_path / "half")))
    found, version = logprobs(engines, pool)
    assert version == 5
    np.testing.assert_allclose(found, poet, atol=1e-4)


def cut_short(folder: Path) -> Path:
    """A model whose copy broke off."""
    build_model(folder, seed=4)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder


def test_from_a_swap_on_the_learner_learns_from_the_new_teacher(engines: Engines) -> None:
    """The new teacher is the student itself, so nothing is left to learn: hidden states and head are of one model."""
    scorers = engines.pools.scorers["teacher"]
    recipe = engines.recipe(
        run={"steps": 3},
        models={"teacher": {"system": None, "swaps": {3: str(engines.models["student"])}}},
        learner={"optimizer": {"lr": 1e-9}},
        data={"heldout": str(engines.prompts["heldout"])},
    )
    spec = scorers.startup.spec
    try:
        done = engines.run(recipe)
    finally:
        scorers.startup.spec = spec
        engines.runner.run(swapped(scorers, 0, engines.models["teacher"]))
    assert done.code == 0
    kl = [line["reverse_kl"] for line in done.lines]
    assert min(kl[:2]) > 0.05 and abs(kl[2]) < 1e-4
    assert done.summary["evaluation"]["before"]["reverse_kl"] > 0.05
    assert abs(done.summary["evaluation"]["after"]["reverse_kl"]) < 1e-4
    assert done.summary["swaps"] == [{"model": "teacher", "step": 3, "path": str(engines.models["student"])}]
