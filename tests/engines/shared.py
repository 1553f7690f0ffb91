"""Engines that serve every test: the same pools are given to one run after another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from configs.hardware import resolve_dtypes
from configs.load import parse_recipe
from configs.schema import Recipe
from orchestrator.pools.layout import REAL, build_pools
from orchestrator.pools.pool import Pool
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import RayTransport
from orchestrator.preflight import cluster
from orchestrator.preflight.files import read_inputs
from orchestrator.run import Run
from tests.engines.armed import ARMED, armable


@dataclass
class Watcher:
    """Observer that keeps what it saw."""

    lines: list[Mapping[str, Any]] = field(default_factory=list)
    pools: Mapping[str, Pool] = field(default_factory=dict)

    def phase(self, text: str) -> None: ...

    def notice(self, text: str) -> None: ...

    def step(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)

    def evaluated(self, when: str, result: Mapping[str, Any] | None, of: str = "") -> None: ...


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
        recipe = self.base = self.recipe(**EVERYTHING, **self.everything())  # its shared folder is the rollouts'
        vllm_recipe = self.recipe(scorer={"teacher": {"engine": "vllm"}}, objective={"support": "sampled"})
        vocabulary = read_inputs(recipe).vocabulary
        transport = RayTransport()

        def built(of: Recipe) -> Pools:
            pools = build_pools(of, transport, vocabulary, self.root / "logs")
            for pool in pools.all().values():
                armable(pool)
            return pools

        self.pools = built(recipe)
        self.judge = built(self.recipe(reward={"model": str(self.models["reward"])})).reward
        self.vllm_scorer = built(vllm_recipe).scorers["teacher"]
        self.learners = {1: built(self.recipe(learner={"ranks": 1})).learner, 2: self.pools.learner}

        async def start_all() -> None:
            writers = self.pools.writers()
            await asyncio.gather(
                writers["student"].members.start(2),
                writers["teacher"].members.start(1),
                writers["dataset"].members.start(1),
                *(pool.members.start(2 if model == "teacher" else 1) for model, pool in self.pools.scorers.items()),
                self.pools.reward.members.start(1),
                self.judge.members.start(1),
                self.vllm_scorer.members.start(1),
                *(learner.members.start(1) for learner in self.learners.values()),
            )

        self.runner.run(start_all())

    def stop(self) -> None:
        async def stop_all() -> None:
            pools = [*self.pools.writers().values(), *self.pools.scorers.values(), self.pools.reward]
            pools += [self.judge, self.vllm_scorer, *self.learners.values()]
            await asyncio.gather(*(pool.members.stop() for pool in pools))

        self.runner.run(stop_all())
        cluster.sweep(self.base)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Members refuse what blocks their event loop, and what they refused fails the test, whoever caught it."""
        pools = [*self.pools.all().values(), self.vllm_scorer]
        members = [(pool, m) for pool in pools if pool.startup.spec(0).cls in ARMED.values() for m in pool.members]
        self._runs += 1
        refused = self.root / f"refused{self._runs}"

        async def each(method: str, *arguments: Any) -> None:
            await asyncio.gather(*(pool.call_member(member, method, *arguments) for pool, member in members))

        self.runner.run(each("arm", str(refused)))
        try:
            yield
        finally:
            self.runner.run(each("disarm"))
        lines = refused.read_text().splitlines()
        assert not lines, f"event loops of members were kept waiting: {sorted(set(lines))}"

    def everything(self) -> dict[str, Any]:
        """A recipe's worth of models and data for every member that some test needs."""
        return {
            "models": {
                "poet": {"path": str(self.models["poet"])},
                "start": {"path": str(self.models["student"])},
                "self": {"weights": "live", "prompt": "well, {prompt}"},
            },
            "data": {"prompts": str(self.prompts["data"])},
            "scorer": {name: SMALL_SCORER for name in ("poet", "start", "self")},
        }

    def recipe(self, **changes: Any) -> Recipe:
        """The tests' base recipe in fp32, with nested changes."""
        self._runs += 1
        tree: dict[str, Any] = {
            "cluster": {"dashboard": False},
            "run": {"name": f"run{self._runs}", "root": str(self.root / "runs"), "steps": 1},
            "models": {
                "student": {"path": str(self.models["student"])},
                "teacher": {"path": str(self.models["teacher"]), "system": "be brief"},
            },
            "data": {"prompts": str(self.prompts["train"]), "responses": str(self.root / "responses")},
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
            "teacher_rollout": {
                "dtype": "float32",
                "max_context_tokens": 160,
                "max_concurrent": 16,
                "resources": {"cpus": 0.1, "threads": 1},
            },
            "scorer": {"teacher": {**SMALL_SCORER, "members": 2}},
        }
        return resolve_dtypes(parse_recipe(merged(tree, changes)), cpu_has_bf16=False)

    def run(self, recipe: Recipe, watcher: Watcher | None = None) -> Finished:
        """Execute a recipe on the shared pools, which the watcher may see."""
        sources, inputs = recipe.objective.sources, read_inputs(recipe)
        pools = Pools(
            rollout=self.pools.rollout,
            teacher_rollout=self.pools.teacher_rollout if "teacher" in sources else None,
            dataset=self.pools.dataset if "dataset" in sources else None,
            scorers={name: self._scorer(recipe, name) for name in recipe.scored_models},
            reward=self.judge if recipe.reward.model else self.pools.reward,
            learner=self.learners[recipe.learner.ranks],
            swapped_scorer=lambda recipe, model, swap: REAL.scorer(recipe, model, inputs.vocabulary, swap),
        )
        directory = Path(recipe.run.root) / recipe.run.name
        watcher = watcher or Watcher()
        watcher.pools = pools.all()
        run = Run(recipe, directory, inputs, pools, watcher)
        return Finished(self.runner.run(run.execute()), directory, recipe)

    def _scorer(self, recipe: Recipe, name: str) -> Pool:
        """The pool that serves a model's weights, whatever the recipe calls it."""
        model = recipe.models[name]
        if model.weights != "frozen":
            return self.pools.scorers["self"]
        if model.path == str(self.models["student"]):
            return self.pools.scorers["start"]
        if model.path == str(self.models["poet"]):
            return self.pools.scorers["poet"]
        return self.vllm_scorer if recipe.scorer_of(name).engine == "vllm" else self.pools.scorers["teacher"]


SMALL_SCORER: dict[str, Any] = {
    "dtype": "float32",
    "max_context_tokens": 160,
    "tokens_per_batch": 256,
    "resources": {"cpus": 0.1, "threads": 1},
}

EVERYTHING: dict[str, Any] = {  # an objective that needs every pool there is
    "objective": {
        "prefix": {"student": 0.4, "teacher": 0.3, "dataset": 0.3},
        "target": {"teacher": 1.0, "poet": 1.0, "start": 1.0, "self": 1.0},
        "support": "full",
    }
}

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
