"""Run directories as a run leaves them, with rewards whose true mean is known; no run makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.wire.records import Sample
from actors.wire.trained import trained_batch
from tests.unit.simulation import recipe

EACH = 2  # responses to a prompt
SETS = {"sets": {"maths": {"prompts": "/none", "samples_per_prompt": EACH, "k": [1, 2]}, "text": {"text": "/none"}}}


@dataclass(frozen=True)
class Written:
    """A run to write. `at`: the chance to pass, by the step of an evaluation; `gpus` of each rollout member; `kl`: the
    distance from the start that a step moves."""

    name: str
    seed: int
    lr: float
    at: Mapping[int, float]
    prompts: int = 30
    gpus: int = 1
    kl: float = 0.01
    tokens: int = 100

    def to(self, root: Path, **changes: Any) -> Path:
        folder, last = root / self.name, max(self.at)
        tree: dict[str, Any] = {
            "run": {"name": self.name, "steps": 20, "seed": self.seed},
            "evaluate": SETS,
            "learner": {"optimizer": {"lr": self.lr}},
            "rollout": {"members": 2, "resources": {"gpus": self.gpus}},
            "metrics": {"start_kl": "sampled"},
        }
        (folder / "samples").mkdir(parents=True)
        given = recipe(root, **(tree | changes)).model_dump(mode="json", exclude_unset=True)
        (folder / "recipe.yaml").write_text(json.dumps(given))  # JSON is YAML
        lines = [self._step(step) for step in range(1, last + 1)]
        lines += [self._evaluation(folder, step, last) for step in sorted(self.at)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    def _step(self, step: int) -> dict[str, Any]:
        known = {"tokens_generated": self.tokens, "seconds_step": 2.0, "start_kl": self.kl * step}
        return {"step": step, "reward_mean": self.lr * step, **known}

    def _evaluation(self, folder: Path, step: int, last: int) -> dict[str, Any]:
        when = "before" if not step else "after" if step == last else f"step {step}"
        rng = np.random.default_rng((self.seed, step, round(1000 * self.lr)))
        passed = rng.random((self.prompts, EACH)) < self.at[step]
        write_responses(folder, f"eval_{when.replace(' ', '_')}_maths", passed)
        shares = {
            "pass@1": float(passed.mean()),
            "avg@2": float(passed.mean()),
            "entropy": 1.0 + self.lr,
            "start_kl": self.kl * step,
        }
        return {"evaluation": "maths", "when": when, "after_step": step, **shares}


def write_responses(folder: Path, stem: str, rewards: np.ndarray) -> None:
    """Rewards [prompts, responses] as recorded responses."""
    samples = [
        Sample(f"{p:08d}.{k:03d}", f"{p:08d}", 0, 0, [p, 1], [5] * (k + 1), [0.0] * (k + 1), [(0, k + 1)], "stop", [0])
        for p in range(rewards.shape[0])
        for k in range(rewards.shape[1])
    ]
    ratios: Sequence[Any] = [np.zeros(len(s.response_ids)) for s in samples]
    batch = trained_batch(samples, rewards.astype(float).reshape(-1).tolist(), ratios, [None] * len(samples))
    with (
        pa.OSFile(str(folder / "samples" / f"{stem}.rank0.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
