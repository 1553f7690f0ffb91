"""Rollout, scorer and learner give the same log-probs for the same tokens; a published version is what is served."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from actors.wire.jobs import LearnerSpec
from actors.wire.records import Request, Sample, unpack_samples
from orchestrator.preflight.files import read_inputs
from orchestrator.weights.carriers import ObjectStore
from orchestrator.weights.learner_group import LearnerGroup
from tests.engines.shared import Engines
from tests.engines.test_equivalence import _load, _Reference
from tests.written import written_in_pool

SAME_MODEL = {"support": "sampled"}


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_rollout_scorer_and_learner_agree(engines: Engines, engine: str) -> None:
    done = engines.run(engines.recipe(objective=SAME_MODEL, scorer={"teacher": {"engine": engine}}))
    rows = done.samples("step_000001")
    assert done.code == 0 and len(rows) == 8
    for row in rows:
        np.testing.assert_allclose(row["rollout_logprobs"], row["student_logprobs"], atol=1e-4)
    teacher = _load(engines.models["teacher"])
    reference = _Reference(done, teacher)
    for row in rows:
        with torch.no_grad():
            p = reference.logprobs(teacher, reference.privileged_prompt(row), row["response_ids"])
        expected = p.gather(1, torch.tensor(row["response_ids"])[:, None])[:, 0].numpy()
        np.testing.assert_allclose(row["teacher_logprobs"], expected, atol=1e-4)


def test_rollouts_serve_the_published_weights(engines: Engines) -> None:
    done = engines.run(engines.recipe(run={"steps": 2}, learner={"optimizer": {"lr": 200.0}}))
    first, second = done.samples("step_000001"), done.samples("step_000002")
    assert {v for row in first for v in row["versions"]} == {0}
    assert {v for row in second for v in row["versions"]} == {1}
    # after the update the learner's log-probs are the new weights'; the rollouts' must be too
    for row in second:
        np.testing.assert_allclose(row["rollout_logprobs"], row["student_logprobs"], atol=1e-4)
    assert done.lines[1]["logprob_gap_mean"] < 1e-4
    assert _moved(engines, second) > 1e-2, "the update must be large enough to tell old weights from new"


def test_full_and_topk_scores_agree_between_engines(engines: Engines) -> None:
    """Top-k of both scorer engines on the same prompts and seeds: same KL within what f16 leaves."""
    topk = {"support": "topk", "topk": 8}
    torch_run, vllm_run = (
        engines.run(engines.recipe(objective=topk, scorer={"teacher": {"engine": e}})) for e in ("torch", "vllm")
    )
    for name in ("reverse_kl", "forward_kl"):
        assert torch_run.lines[0][name] == pytest.approx(vllm_run.lines[0][name], rel=5e-3)
    assert torch_run.lines[0]["kl_support"] == "topk"
    full = engines.run(engines.recipe())
    assert torch_run.lines[0]["reverse_kl"] < full.lines[0]["reverse_kl"] * 1.001, "a tail bucket is a lower bound"


def test_a_load_in_mid_response_switches_between_two_tokens(engines: Engines) -> None:
    """Every token's log-prob is that of the version it carries, whole: no half-loaded weights, no stale cache."""
    recipe = engines.recipe(learner={"optimizer": {"lr": 200.0}}, sampling={"max_response_tokens": 90})
    done = engines.run(recipe)  # leaves version 1 in the rollouts, and its weights in done.directory / "model"
    pool, inputs = engines.pools.rollout, read_inputs(recipe)
    assert pool is not None
    member = pool.members[0]
    requests = [
        Request(f"{i:08d}.000", f"{i:08d}", 0, i, inputs.train[i].ids["student"], segment_tokens=4) for i in range(8)
    ]
    came: list[Any] = []

    async def sample_and_load() -> list[Sample]:
        learner = LearnerGroup(recipe, engines.learners[2])
        spec = LearnerSpec(recipe.learner, recipe.objective, str(engines.models["student"]), 264, 1, 0, "float32")
        await learner.start(spec)
        version = await ObjectStore().publish(learner, 2, None)  # the first weights again, under a new number

        async def collect() -> None:
            pairs = written_in_pool(pool, requests, recipe.sampling, recipe.stream, inputs.end_token_ids)
            async for payload, _ in pairs:
                came.append(await pool.transport.value(payload))

        sampling = asyncio.create_task(collect())
        while not came and not sampling.done():
            await asyncio.sleep(0.001)
        await pool.call_member(member, "load", version.number, *version.parts)
        await sampling
        return [s for payload in came for s in unpack_samples(payload) if s.finish]

    samples = engines.runner.run(sample_and_load())
    assert len(samples) == len(requests)
    weights = {1: _load(done.directory / "model"), 2: _load(engines.models["student"])}
    switched = [s for s in samples if set(s.versions) == {1, 2}]
    assert switched and all(s.versions == sorted(s.versions) for s in samples)
    for s in switched:
        for version, model in weights.items():
            logprobs = _logprobs(model, s.prompt_ids, s.response_ids)
            carried = [t for t, v in enumerate(s.versions) if v == version]
            np.testing.assert_allclose(np.array(s.rollout_logprobs)[carried], logprobs[carried], atol=1e-4)


def _moved(engines: Engines, rows: list[dict[str, Any]]) -> float:
    """Mean |log-prob change| of these tokens from the first weights."""
    first = _load(engines.models["student"])
    gaps = [
        np.abs(_logprobs(first, row["prompt_ids"], row["response_ids"]) - np.array(row["student_logprobs"]))
        for row in rows
    ]
    return float(np.concatenate(gaps).mean())


def _logprobs(model: Any, prompt: list[int], response: list[int]) -> np.ndarray:
    """Log-prob of each response token under a plain model, float32."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].numpy()
