"""Models whose files name other tensors than transformers has parameters: a run of them, and engines that serve what
the learner publishes.

Every weight of the student that is published last differs from those that the engines were started with, so that a
tensor which is not loaded, or loaded in another's place, shows in log-probs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from actors.wire.jobs import LearnerSpec
from actors.wire.records import Request, Sample, ScoreRequest, ScoreTable, unpack_samples
from configs.load import parse_recipe
from configs.schema import Recipe
from orchestrator.pools.layout import build_pools
from orchestrator.pools.transport import RayTransport
from orchestrator.preflight import cluster
from orchestrator.preflight.files import read_inputs
from orchestrator.run import Run
from orchestrator.weights.carriers import ObjectStore
from orchestrator.weights.learner_group import LearnerGroup
from tests import architectures
from tests.engines.shared import Finished, Watcher
from tests.tiny import write_prompts
from tests.written import written_in_pool

pytestmark = pytest.mark.system

LAST = 9  # the version that is published in the end
SMALL: dict[str, Any] = {"dtype": "float32", "resources": {"cpus": 0.1, "threads": 1}}


@dataclass(frozen=True)
class Served:
    """What a rollout sampled of the published weights, and a scorer's log-probs of the same tokens, by uid."""

    code: int  # of the run before
    samples: list[Sample]
    scores: dict[str, np.ndarray]


@pytest.mark.parametrize("name", ["qwen3_moe", pytest.param("mixtral", marks=pytest.mark.acceptance)])
def test_engines_serve_the_student_that_was_published(
    name: str, ray_cluster: None, runner: asyncio.Runner, tmp_path: Path
) -> None:
    first = architectures.build(name, tmp_path / "first", seed=1)
    moved = architectures.build(name, tmp_path / "moved", seed=2)
    recipe = _recipe(first, tmp_path)
    served = runner.run(_run_and_publish(recipe, moved, tmp_path))

    trained = Finished(served.code, tmp_path / "run", recipe)
    assert trained.code == 0 and len(trained.lines) == 2
    for row in trained.samples("step_000002"):
        assert set(row["versions"]) == {1}
        np.testing.assert_allclose(row["rollout_logprobs"], row["student_logprobs"], atol=1e-4)

    before, after = _loaded(first), _loaded(tmp_path / "export")
    assert len(served.samples) == 4 and all(set(sample.versions) == {LAST} for sample in served.samples)
    for sample in served.samples:
        expected = _logprobs(after, sample)
        np.testing.assert_allclose(sample.rollout_logprobs, expected, atol=1e-4)
        np.testing.assert_allclose(served.scores[sample.uid], expected, atol=1e-4)
        assert np.abs(_logprobs(before, sample) - expected).mean() > 0.5, "old weights must be told from new"
    exported, files = (load_file(folder / "model.safetensors") for folder in (tmp_path / "export", moved))
    assert exported.keys() == files.keys() and all(torch.equal(exported[key], files[key]) for key in files)


async def _run_and_publish(recipe: Recipe, moved: Path, root: Path) -> Served:
    """A run of the recipe; then its learner is built of `moved`, and publishes that to the engines."""
    inputs = read_inputs(recipe)
    pools = build_pools(recipe, RayTransport(), inputs.vocabulary, root / "logs")
    rollout, scorer = pools.rollout, pools.scorers["self"]
    assert rollout is not None
    try:
        await asyncio.gather(*(pool.members.start(1) for pool in pools.all().values()))
        code = await Run(recipe, root / "run", inputs, pools, Watcher()).execute()
        learner = LearnerGroup(recipe, pools.learner)
        await learner.start(LearnerSpec(recipe.learner, recipe.objective, str(moved), 264, 1, 0, "float32"))
        version = await ObjectStore().publish(learner, LAST, None)
        for pool in (rollout, scorer):
            await pool.call_member(pool.members[0], "load", version.number, *version.parts)
        await learner.export(root / "export")
        payload = await _sampled(recipe, rollout)
        samples, table = unpack_samples(payload), ScoreTable(await _scored(scorer, payload))
        return Served(code, samples, {sample.uid: table.values(sample.uid, "logprobs") for sample in samples})
    finally:
        await asyncio.gather(*(pool.members.stop() for pool in pools.all().values()))
        cluster.sweep(recipe)


async def _sampled(recipe: Recipe, rollout: Any) -> pa.RecordBatch:
    requests = [Request(f"{i:08d}.000", f"{i:08d}", 0, i, [3 + i, 9, 27, 81]) for i in range(4)]
    pairs = written_in_pool(rollout, requests, recipe.sampling, recipe.stream, (2,))
    payloads = [await rollout.transport.value(ref) async for ref, _ in pairs]
    return pa.Table.from_batches(payloads).combine_chunks().to_batches()[0]


async def _scored(scorer: Any, payload: pa.RecordBatch) -> pa.RecordBatch:
    ref, _ = await scorer.call("score", payload, ScoreRequest("sampled"), returns=2)
    return await scorer.transport.value(ref)


def _recipe(student: Path, root: Path) -> Recipe:
    return parse_recipe(
        {
            "run": {"name": "architecture", "root": str(root / "runs"), "steps": 2},
            "models": {"student": {"path": str(student)}, "self": {"weights": "live", "prompt": "well, {prompt}"}},
            "data": {"prompts": str(write_prompts(root / "prompts.jsonl", 8))},
            "batch": {"prompts_per_step": 4, "tokens_per_microbatch": 128},
            "sampling": {"max_response_tokens": 24},
            "objective": {"target": "self", "support": "sampled"},
            "learner": {**SMALL, "ranks": 2, "zero_stage": 3, "optimizer": {"name": "sgd", "lr": 1.0}},
            "rollout": {**SMALL, "max_context_tokens": 128, "max_concurrent": 8},
            "scorer": {"self": {**SMALL, "max_context_tokens": 128}},
        }
    )


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).float().eval()


def _logprobs(model: Any, sample: Sample) -> np.ndarray:
    """Log-prob of each response token under a plain model, float32."""
    with torch.no_grad():
        logits = model(torch.tensor([sample.prompt_ids + sample.response_ids])).logits[
            0, len(sample.prompt_ids) - 1 : -1
        ]
    return logits.log_softmax(-1).gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0].numpy()
