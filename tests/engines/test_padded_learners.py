"""Architectures that cannot be packed, through real learner ranks under DeepSpeed: loss, gradient and weights of a step
against the model itself, one sequence at a time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.ranks import Ranks
from tests.engines.shared import Finished, Watcher
from tests.probed import write
from tests.tiny import build_tokenizer

pytestmark = pytest.mark.system

RATE = 2.0**10  # a power of two, so that (before - after) / RATE is the gradient


def test_a_step_of_a_model_that_is_padded_is_the_models_own(
    ranks: Ranks, runner: asyncio.Runner, tmp_path: Path
) -> None:
    words = len(build_tokenizer())
    names = ("qwen3_5_text", "falcon_h1", "gpt_oss")
    folders = {name: write(tmp_path / name, name, words) for name in names}
    rows = [json.dumps({"prompt": f"{i}" * (1 + 3 * i), "response": "why not " * (i % 3 + 1)}) for i in range(8)]
    for folder in folders.values():
        (folder / "rows.jsonl").write_text("\n".join(rows))
    pools = ranks.pools(_recipe(ranks, folders["falcon_h1"], 2))
    try:
        for folder in folders.values():
            for stage in (2, 3):
                _assert_own_step(folder, ranks.run(_recipe(ranks, folder, stage), Watcher(), pools))
    finally:
        for pool in pools.all().values():
            runner.run(pool.members.stop())


def _recipe(ranks: Ranks, student: Path, stage: int) -> Any:
    return ranks.recipe(
        run={"steps": 1},
        models={"student": {"path": str(student)}},
        data={"prompts": str(student / "rows.jsonl")},
        batch={"prompts_per_step": 8, "tokens_per_microbatch": 256},
        learner={"zero_stage": stage, "optimizer": {"name": "sgd", "lr": RATE}},
        checkpoint={"every": 0},
    )


def _assert_own_step(folder: Path, done: Finished) -> None:
    before, after, rows = _loaded(folder), _loaded(done.directory / "model"), done.samples("step_000001")
    assert len({len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows}) > 3, "nothing to pad"
    logprobs = torch.cat([_logprobs(before, row) for row in rows])
    loss = -logprobs.mean()
    loss.backward()
    assert done.lines[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5), folder.name

    moved = dict(after.named_parameters())
    errors, norms = [], []
    for name, parameter in before.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = (parameter.detach() - moved[name].detach()) / RATE
        errors.append((found - gradient).norm())
        norms.append(gradient.norm())
    error, norm = (float(torch.stack(values).norm()) for values in (errors, norms))
    assert error / norm < 1e-4, (folder.name, error / norm)
    assert done.lines[0]["grad_norm"] == pytest.approx(norm, rel=1e-4), folder.name


def _logprobs(model: Any, row: dict[str, Any]) -> torch.Tensor:
    ids, start = row["prompt_ids"] + row["response_ids"], len(row["prompt_ids"])
    logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(row["response_ids"])[:, None])[:, 0]


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
