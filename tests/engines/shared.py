"""Engines that serve every test: the same pools are given to one run after another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from configs.hardware import resolve_dtypes
from configs.load import parse_recipe
from configs.schema import Recipe
from orchestrator import cluster
from orchestrator.flow import Pools
from orchestrator.layout import build_pools
from orchestrator.preflight import read_inputs
from orchestrator.run import Run
from orchestrator.transport import RayTransport


@dataclass
class Watcher:
    """Observer that keeps what it saw."""

    lines: list[Mapping[str, Any]] = field(default_factory=list)

    def phase(self, text: str) -> None: ...

    def notice(self, text: str) -> None: ...

    def step(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)

    def evaluated(self, when: str, result: Mapping[str, Any] | None) -> None: ...


@dataclass(frozen=True)
class Finished:
    """A run that has ended: its exit code, directory and lines of metrics.jsonl."""

    code: int
    directory: Path
    recipe: Recipe

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.directory / "summary.json").read_text())

    def samples(self, name: str) -> list[dict[str, Any]]:
        """Rows that all ranks recorded under `name` (step_000001, eval_before), by uid."""
        rows: list[dict[str, Any]] = []
        for file in sorted((self.directory / "samples").glob(f"{name}.rank*.arrow")):
            with pa.OSFile(str(file)) as source:
                rows += pa.ipc.open_file(source).read_all().to_pylist()
        return sorted(rows, key=lambda row: row["uid"])


class Engines:
    def __init__(self, models: dict[str, Path], prompts: dict[str, Path], root: Path, runner: asyncio.Runner) -> None:
        self.models = models
        self.prompts = prompts
        self.root = root
        self.runner = runner
        self._runs = 0

    def start(self) -> None:
        """Bring everything up at once; two cores need a minute or two for it."""
        sampled = {"objective": {"support": "sampled"}}
        torch_recipe, vllm_recipe = self.recipe(), self.recipe(scorer={"teacher": {"engine": "vllm"}}, **sampled)
        one_rank, dataset = self.recipe(learner={"ranks": 1}), self.recipe(**DATASET)
        vocabulary = read_inputs(torch_recipe).vocabulary
        transport = RayTransport()
        two, one = (build_pools(r, transport, vocabulary, self.root / "logs") for r in (torch_recipe, one_rank))
        vllm = build_pools(vllm_recipe, transport, vocabulary, self.root / "logs")
        data = build_pools(dataset, transport, vocabulary, self.root / "logs")
        self._recipe = torch_recipe  # whose shared folder the rollouts were given
        self.pools = two
        self.dataset = data.dataset
        self.scorers = {"torch": two.scorers["teacher"], "vllm": vllm.scorers["teacher"]}
        self.learners = {1: one.learner, 2: two.learner}

        async def start_all() -> None:
            await asyncio.gather(
                two.rollout.start(2),
                two.scorers["teacher"].start(2),
                two.reward.start(1),
                vllm.scorers["teacher"].start(1),
                data.dataset.start(1),
                *(learner.start(1) for learner in self.learners.values()),
            )

        self.runner.run(start_all())

    def stop(self) -> None:
        async def stop_all() -> None:
            pools = [self.pools.rollout, self.pools.reward, self.dataset]
            pools += [*self.scorers.values(), *self.learners.values()]
            await asyncio.gather(*(pool.stop() for pool in pools))

        self.runner.run(stop_all())
        cluster.sweep(self._recipe)

    def recipe(self, **changes: Any) -> Recipe:
        """The tests' base recipe in fp32, with nested changes."""
        self._runs += 1
        tree: dict[str, Any] = {
            "run": {"name": f"run{self._runs}", "root": str(self.root / "runs"), "steps": 1},
            "models": {
                "student": {"path": str(self.models["student"])},
                "teacher": {"path": str(self.models["teacher"]), "system": "be brief"},
            },
            "data": {"prompts": str(self.prompts["train"])},
            "batch": {"prompts_per_step": 4, "samples_per_prompt": 2, "tokens_per_microbatch": 128},
            "sampling": {"max_response_tokens": 12},
            "objective": {"target": "teacher", "support": "full"},
            "learner": {
                "ranks": 2,
                "dtype": "float32",
                "zero_stage": 2,
                "tokens_per_chunk": 16,
                "optimizer": {"name": "sgd", "lr": 0.1, "max_grad_norm": 0.0},
                "resources": {"cpus": 0.1, "threads": 1},
            },
            "rollout": {
                "members": 2,
                "dtype": "float32",
                "max_context_tokens": 128,
                "max_concurrent": 16,
                "resources": {"cpus": 0.1, "threads": 1},
            },
            "scorer": {
                "teacher": {
                    "members": 2,
                    "dtype": "float32",
                    "max_context_tokens": 160,
                    "tokens_per_batch": 256,
                    "resources": {"cpus": 0.1, "threads": 1},
                }
            },
        }
        return resolve_dtypes(parse_recipe(merged(tree, changes)), cpu_has_bf16=False)

    def run(self, recipe: Recipe) -> Finished:
        """Execute a recipe on the shared pools."""
        model = recipe.scored_models
        pools = Pools(
            rollout=self.pools.rollout,
            dataset=self.dataset if recipe.objective.prefix == "dataset" else None,
            scorers={name: self.scorers[recipe.scorer_of(name).engine] for name in model},
            reward=self.pools.reward,
            learner=self.learners[recipe.learner.ranks],
        )
        directory = Path(recipe.run.root) / recipe.run.name
        run = Run(recipe, directory, read_inputs(recipe), pools, Watcher())
        return Finished(self.runner.run(run.execute()), directory, recipe)


DATASET: dict[str, Any] = {
    "objective": {"prefix": "dataset", "target": "data", "support": "sampled", "reverse_weight": 0.0}
}


def merged(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries merge, everything else replaces."""
    out = dict(tree)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if nested else value
    return out


def pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], list[int]]]:
    return [(row["prompt_ids"], row["response_ids"]) for row in rows]
