"""The distributed system against a few lines of plain torch, on the run's own recorded tokens.

Two rollouts, two scorers, one or two learner ranks; fp32. SGD with a power-of-two rate gives the gradient back
exactly: (before - after) / rate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.shared import DATASET, Engines, Finished, merged

RATE = 64.0
FULL = {"objective": {"support": "full", "reverse_weight": 0.7}}
SAMPLED = {"objective": {"support": "sampled", "clip": 3.0}}
SEQUENCE = {"objective": {"support": "full", "normalise": "sequence"}}
TWO_RANKS: dict[str, Any] = {"learner": {"ranks": 2, "zero_stage": 2}}
ZERO3: dict[str, Any] = {"learner": {"ranks": 2, "zero_stage": 3}}
ONE_RANK: dict[str, Any] = {"learner": {"ranks": 1, "zero_stage": 0}}
BIG_BATCHES = {"batch": {"tokens_per_microbatch": 512}}
UNPACKED = {"learner": {"packing": False}}
ADAMW = {"learner": {"optimizer": {"name": "adamw", "lr": 1e-3, "eps": 1e-4}}}
ON_HOST = {"learner": {"offload_optimizer": "cpu"}}
TURNS = {"colocate": True}
SGD = {"learner": {"optimizer": {"name": "sgd", "lr": RATE}}}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([FULL, TWO_RANKS, SGD], id="full-zero2-sgd"),
        pytest.param([FULL, ZERO3, SGD], id="full-zero3-sgd"),
        pytest.param([SAMPLED, TWO_RANKS, SGD], id="sampled-zero2-sgd"),
        pytest.param([SEQUENCE, ZERO3, SGD, BIG_BATCHES], id="sequence-zero3-sgd-big-microbatches"),
        pytest.param([FULL, ONE_RANK, SGD], id="full-one-rank-sgd"),
        pytest.param([FULL, ONE_RANK, SGD, UNPACKED, BIG_BATCHES], id="full-one-rank-sgd-unpacked"),
        pytest.param([FULL, TWO_RANKS, ADAMW], id="full-zero2-adamw"),
        pytest.param([SAMPLED, ZERO3, ADAMW], id="sampled-zero3-adamw"),
        pytest.param([DATASET, TWO_RANKS, SGD], id="sft-zero2-sgd"),
        pytest.param([FULL, TWO_RANKS, ADAMW, TURNS], id="full-zero2-adamw-in-turns"),
        pytest.param(
            [FULL, ZERO3, ON_HOST, ADAMW, TURNS],
            id="full-zero3-adamw-on-host-in-turns",
            marks=pytest.mark.acceptance,  # DeepSpeed compiles its optimizer for a minute
        ),
    ],
)
def test_loss_gradient_and_weights_equal_a_plain_reference(engines: Engines, changes: list[dict[str, Any]]) -> None:
    tree: dict[str, Any] = {}
    for change in changes:
        tree = merged(tree, change)
    if tree["objective"].get("prefix") == "dataset":
        tree["data"] = {"prompts": str(engines.prompts["data"])}
    done = engines.run(engines.recipe(**tree))
    before, after, reference = (
        _load(engines.models["student"]),
        _load(done.directory / "model"),
        _reference(engines, done),
    )

    loss = reference.loss(before)
    assert done.lines[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)

    loss.backward()
    gradient = {name: p.grad for name, p in before.named_parameters()}
    norm = torch.sqrt(sum((g.double() ** 2).sum() for g in gradient.values()))
    if done.recipe.learner.optimizer.name == "sgd":
        found = {n: (p.detach() - _parameter(after, n)) / RATE for n, p in before.named_parameters()}
        error = torch.sqrt(sum(((found[n] - g).double() ** 2).sum() for n, g in gradient.items()))
        assert float(error / norm) < 1e-5
    assert done.lines[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)

    _plain_step(before, done)
    step = RATE * float(norm) if done.recipe.learner.optimizer.name == "sgd" else 1.0  # what rounding is relative to
    for name, parameter in before.named_parameters():
        atol = 1e-5 * max(1.0, step)
        torch.testing.assert_close(_parameter(after, name), parameter.detach(), rtol=1e-5, atol=atol, msg=name)


class _Reference:
    """The objective in plain torch: one sequence at a time, no packing, no ranks."""

    def __init__(self, done: Finished, teacher: Any) -> None:
        self.objective = done.recipe.objective
        self.rows = done.samples("step_000001")
        self.teacher = teacher
        self.privileged = done.recipe.models["teacher"].system

    def loss(self, student: Any) -> torch.Tensor:
        total_tokens = sum(len(row["response_ids"]) for row in self.rows)
        total = torch.zeros(())
        for row in self.rows:
            per_token = self.per_token(row, self.logprobs(student, row["prompt_ids"], row["response_ids"]))
            scale = 1 / total_tokens
            if self.objective.normalise == "sequence":
                scale = 1 / (len(per_token) * len(self.rows))
            total = total + per_token.sum() * scale
        return total

    def per_token(self, row: dict[str, Any], q: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor(row["response_ids"])
        log_q = q.gather(1, ids[:, None])[:, 0]
        if self.objective.target == "data":
            return -log_q
        with torch.no_grad():
            p = self.logprobs(self.teacher, self.privileged_prompt(row), row["response_ids"])
        if self.objective.support == "sampled":
            ratio = (p.gather(1, ids[:, None])[:, 0] - log_q.detach()).clamp(-3.0, 3.0)
            weight = (log_q.detach() - torch.tensor(row["rollout_logprobs"])).exp().clamp(max=2.0)
            return -(weight * ratio) * log_q
        lam = self.objective.reverse_weight
        return (lam * q.exp() * (q - p) + (1 - lam) * p.exp() * (p - q)).sum(-1)

    def logprobs(self, model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return logits.float().log_softmax(-1)

    def privileged_prompt(self, row: dict[str, Any]) -> list[int]:
        """The same question behind the teacher's system text, in the tests' chat format."""
        from tests.tiny import build_tokenizer

        tokenizer = build_tokenizer()
        question = tokenizer.decode(row["prompt_ids"]).split("user\n")[1].split("<|im_end|>")[0]
        turns = [{"role": "system", "content": self.privileged}, {"role": "user", "content": question}]
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]


def _reference(engines: Engines, done: Finished) -> _Reference:
    teacher = _load(engines.models["teacher"])
    return _Reference(done, teacher)


def _plain_step(model: Any, done: Finished) -> None:
    settings = done.recipe.learner.optimizer
    if settings.name == "sgd":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=settings.lr)
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=0.0
        )
    optimizer.step()


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _parameter(model: Any, name: str) -> torch.Tensor:
    return dict(model.named_parameters())[name].detach()
