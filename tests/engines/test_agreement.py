"""Rollout, scorer and learner give the same log-probs for the same tokens; a published version is what is served."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.engines.shared import Engines
from tests.engines.test_equivalence import _load, _Reference

SAME_MODEL = {"support": "sampled"}


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_rollout_scorer_and_learner_agree(engines: Engines, engine: str) -> None:
    done = engines.run(engines.recipe(objective=SAME_MODEL, scorer={"teacher": {"engine": engine}}))
    rows = done.samples("step_000001")
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
    done = engines.run(engines.recipe(run={"steps": 2}, learner={"optimizer": {"lr": 30.0}}))
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


def _moved(engines: Engines, rows: list[dict]) -> float:
    """Mean |log-prob change| of these tokens from the first weights."""
    first = _load(engines.models["student"])
    gaps = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        with torch.no_grad():
            logits = first(ids).logits[0, len(row["prompt_ids"]) - 1 : -1]
        old = logits.log_softmax(-1).gather(1, torch.tensor(row["response_ids"])[:, None])[:, 0]
        gaps += (old - torch.tensor(row["student_logprobs"])).abs().tolist()
    return float(np.mean(gaps))
