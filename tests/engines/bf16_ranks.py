"""Ranks of a bf16 learner without Ray.

`python -m tests.engines.bf16_ranks RANK RANKS PORT MODEL MICRO_BATCHES STAGE[+cpu]...`

At every ZeRO stage the gradient of many micro-batches is compared with the float64 sum of the same ones, taken one by
one. Rank 0 prints a line of JSON for each stage.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from actors.learning import learner
from actors.learning.learner import Learner
from actors.learning.student import Student, Targets
from actors.models import causal_lm
from actors.models.causal_lm import Pack
from actors.models.handling import PLAIN
from actors.wire.jobs import LearnerSpec
from configs.objective import Objective as ObjectiveConfig
from configs.roles.learner import Learner as LearnerConfig
from objectives import objective
from objectives.schedule import Dials
from objectives.tokens import Tokens

OBJECTIVE, VOCABULARY, CHUNK = ObjectiveConfig(target="data"), 259, 2
PROMPT, RESPONSE = 3, 5


class Micro:
    """Stands in for `Batch`: so many micro-batches of one short response each, all different."""

    def __init__(self, rank: int, count: int) -> None:
        self.share = SimpleNamespace(micro_batches=[(f"{rank}/{i}",) for i in range(count)], dials=Dials())
        self.old = {"seen": True}

    def micro_batch(self, uids: Sequence[str]) -> tuple[Pack, Targets]:
        rank, index = map(int, uids[0].split("/"))
        draw = torch.Generator().manual_seed(10_000 * rank + index)
        ids = torch.randint(0, VOCABULARY, (PROMPT + RESPONSE,), generator=draw).tolist()
        pack, ones = causal_lm.pack([(ids[:PROMPT], ids[PROMPT:])]), torch.ones(RESPONSE)
        where = {"sequence": torch.zeros(RESPONSE, dtype=torch.long), "position": torch.arange(RESPONSE)}
        of = dict.fromkeys(("rollout_logprob", "advantage", "reward"), 0 * ones)
        marks = dict.fromkeys(("on", "drawn"), ones.bool())
        tokens = Tokens(token_ids=pack.token_ids, weights={"distillation": ones / RESPONSE}, **where, **of, **marks)
        return pack, Targets(tokens)


class Unread:
    """Stands in for `Readings`."""

    def __init__(self, batch: Any, compares_sampler: bool) -> None:
        self.student: dict[str, Any] = {}

    def add(self, *results: Any) -> None: ...

    def reduced(self, share: Any) -> dict[str, Any]:
        return {}


def expected(model: Path, ranks: int, count: int) -> dict[str, Tensor]:
    """The same bf16 micro-gradients, summed in float64: as the learner takes them, of a loss times `ranks`, which bf16
    rounds otherwise where that is no power of two."""
    student = Student(causal_lm.load_model(model, "bfloat16"), objective.build(OBJECTIVE), VOCABULARY, CHUNK, PLAIN)
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in student.named_parameters()}
    for rank in range(ranks):
        batch = Micro(rank, count)
        for uids in batch.share.micro_batches:
            student.zero_grad()
            (student(*batch.micro_batch(uids), Dials())[0] * ranks).backward()
            for name, parameter in student.named_parameters():
                total[name] += 0.0 if parameter.grad is None else parameter.grad.double() / ranks
    return total


def gradient(rank: Learner) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_grad

    return {name: safe_get_full_grad(p).double() for name, p in rank._built.named_parameters()}


def moments(rank: Learner) -> dict[str, Tensor]:
    """What the optimizer was given at step 1, wherever it is kept: Adam's first moment holds 1 - beta of it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    share = 1.0 - rank._specified.config.optimizer.betas[0]
    parameters = rank._built.named_parameters()
    return {name: safe_get_full_optimizer_state(p, "exp_avg").double() / share for name, p in parameters}


def distance(found: dict[str, Tensor], total: dict[str, Tensor]) -> float:
    """Of `found` from `total`, relative; where there is no `total`, not a number: every rank gathers, one compares."""
    if not total:
        return math.nan
    squares = sum(float((found[name] - total[name]).square().sum()) for name in total)
    return (squares / sum(float(tensor.square().sum()) for tensor in total.values())) ** 0.5


def main() -> None:
    (rank, ranks, port), model, count = map(int, sys.argv[1:4]), Path(sys.argv[4]), int(sys.argv[5])
    learner.Readings = Unread  # type: ignore[assignment]
    member, total = Learner(rank, ranks), expected(model, ranks, count) if rank == 0 else {}
    norm = sum(float(tensor.square().sum()) for tensor in total.values()) ** 0.5 if total else math.nan
    for asked in sys.argv[6:]:
        stage, offload = int(asked[0]), "cpu" if asked.endswith("+cpu") else "none"
        optimizer = {"name": "adamw", "lr": 1e-12, "max_grad_norm": 0.0}
        settings: dict[str, Any] = {"optimizer": optimizer, "tokens_per_chunk": CHUNK}
        settings |= {"dtype": "bfloat16", "zero_stage": stage, "offload_optimizer": offload, "ranks": ranks}
        spec = LearnerSpec(LearnerConfig.model_validate(settings), OBJECTIVE, str(model), VOCABULARY, 2, 0, "bfloat16")
        member.start(spec, ("127.0.0.1", port))
        line: dict[str, Any] = {"stage": asked, "errors": [], "norms": []}
        for step in (1, 2):  # the second time from the same weights: the rate moves nothing
            member._accumulate(Micro(rank, count))  # type: ignore[arg-type]
            if offload == "none":  # else it is with the optimizer, whose moments show it
                line["errors"].append(distance(gradient(member), total))
            line["norms"].append(member._apply(step)["grad_norm"] / norm - 1.0)
            if step == 1:
                line["errors"].append(distance(moments(member), total))
        if stage in (1, 2):
            member.sleep()
            member.wake()
        if rank == 0:
            print(json.dumps(line), flush=True)
    member.stop()
    os._exit(0)  # gloo's threads may abort an interpreter that ends while the other rank leaves


if __name__ == "__main__":
    main()
