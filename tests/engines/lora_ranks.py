"""Ranks of a learner with adapters, without Ray.

`python -m tests.engines.lora_ranks RANK RANKS PORT MODEL FOLDER CASE...`, a case being `STAGE-DTYPE`, or
`STAGE-DTYPE-OBJECTIVE` of those that read the base.

Each case takes three steps, saves after the second and takes the third once more from the checkpoint. Rank 0 prints a
line of JSON for each case, and exports the model to FOLDER/CASE, and that of the checkpoint to FOLDER/CASE-second.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.learning.learner import Learner
from actors.wire.jobs import LearnerSpec, Share, Total
from actors.wire.records import Request, Sample, pack_samples
from configs.objective import Objective
from configs.roles.learner import Learner as LearnerConfig
from objectives.schedule import dials_at

VOCABULARY, SAMPLES, TOKENS = 259, 7, 9
REFERENCE = {"model": "base", "beta": 0.5, "placement": "reward_token"}
OBJECTIVES = {
    "": Objective(target="data", reverse_weight=0.0),
    "sampled": Objective(target="base", support="sampled"),
    "full": Objective(target="base", support="full", reverse_weight=0.7),
    "reference": Objective.model_validate({"target": "none", "outcome": {"weight": 1.0}, "reference": REFERENCE}),
}
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]}


def samples() -> list[Sample]:
    rng = np.random.default_rng(3)
    requests = [Request(f"{i:08d}.000", f"{i:08d}", 0, i, [5, 6, 7 + i]) for i in range(SAMPLES)]
    return [r.answered(rng.integers(9, 200, TOKENS).tolist(), [-5.0] * TOKENS, "stop", [0] * TOKENS) for r in requests]


def share(rank: int, ranks: int, step: int, objective: Objective) -> Share:
    """Of seven samples two ranks have four and three: one of them has a micro-batch without any."""
    uids = [sample.uid for sample in samples()][rank::ranks]
    most = -(-SAMPLES // ranks)
    return Share(
        step=step,
        version=0,
        micro_batches=tuple((uid,) for uid in uids) + ((),) * (most - len(uids)),  # ranks take as many
        loss_tokens=SAMPLES * TOKENS,
        totals={term: Total(SAMPLES * TOKENS, SAMPLES) for term in objective.terms},
        constant=100,
        dials=dials_at(objective, step),
        rows=dict.fromkeys(uids, 0),
        advantages={uid: (-1.0) ** int(uid[:8]) for uid in uids},
        base_prompts={"base": {uid: [9, 5, 6, 8, 7 + int(uid[:8])] for uid in uids}},
    )


def spec_of(case: str, ranks: int, model: str) -> LearnerSpec:
    stage, dtype, *rest = case.split("-")
    objective = OBJECTIVES["".join(rest)]
    settings: dict[str, Any] = {"optimizer": {"name": "adamw", "lr": 1e-2}, "tokens_per_chunk": 8, "lora": LORA}
    settings |= {"dtype": dtype, "zero_stage": int(stage), "ranks": ranks}
    config = LearnerConfig.model_validate(settings)
    base = ("base",) if rest else ()
    return LearnerSpec(config, objective, model, VOCABULARY, 4, 0, dtype, averages={"ema": 0.5}, base=base)


def published(member: Learner, model: str | None = None) -> list[Any]:
    parts = list(member.publish(model))
    return [(header.names, header.dtype, hashlib.sha256(data.tobytes()).hexdigest()) for data, header in _pairs(parts)]


def _pairs(parts: list[Any]) -> list[Any]:
    return list(zip(parts[::2], parts[1::2], strict=True))


def trained(member: Learner) -> list[str]:
    return [name for name, p in member._built.named_parameters() if p.requires_grad]


def main() -> None:
    (rank, ranks, port), model, folder = map(int, sys.argv[1:4]), sys.argv[4], Path(sys.argv[5])
    member = Learner(rank, ranks)
    for case in sys.argv[6:]:
        spec, saved = spec_of(case, ranks, model), folder / f"{case}-saved"
        member.start(spec, ("127.0.0.1", port))
        line: dict[str, Any] = {"case": case, "trained": trained(member), "first": published(member)}
        line |= {"losses": [], "norms": []}

        def step(number: int, line: dict[str, Any] = line, spec: LearnerSpec = spec) -> None:
            member.fetch(pack_samples(samples())[0])
            taken = member.step(share(rank, ranks, number, spec.objective))
            line["losses"].append(taken["loss"])
            line["norms"].append(taken["grad_norm"])

        step(1), step(2)
        saved.mkdir(exist_ok=True)
        member.save(str(saved))
        member.export(str(folder / f"{case}-second"))
        step(3)
        line["third"] = [published(member), published(member, "ema")]
        member.start(spec, ("127.0.0.1", port))
        member.restore(str(saved))
        step(3)
        line["again"] = [published(member), published(member, "ema")]
        member.export(str(folder / case))
        if spec.config.deepspeed_stage in (1, 2):
            member.sleep()
            member.wake()
            line["woken"] = published(member)
        if rank == 0:
            torch.save(dict(member._averages["ema"]), folder / f"{case}-ema.pt")
            print(json.dumps(line), flush=True)
    member.stop()
    os._exit(0)  # gloo's threads may abort an interpreter that ends while the other rank leaves


if __name__ == "__main__":
    main()
