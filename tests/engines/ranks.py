"""Real learner ranks without any engine beside them, which tests strike at work: Ray, DeepSpeed over gloo."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from actors.learning.learner import Learner
from actors.simulated.members import Speeds
from configs.hardware import resolve_dtypes
from configs.load import parse_recipe
from configs.schema import Recipe
from orchestrator.pools.layout import REAL, build_pools
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import GangSpec, RayTransport
from orchestrator.preflight.files import read_inputs
from orchestrator.run import Run
from tests.engines.shared import Finished, Watcher, merged
from tests.unit.simulation import simulated

COLLECTIVES = (
    "allreduce",
    "broadcast",
    "allgather",
    "_allgather_base",
    "_reduce_scatter_base",
    "reduce_scatter",
    "barrier",
)


class Struck(Learner):
    """A rank that dies or raises inside a collective when a file in the folder `orders` says so. How many collectives
    it made in each of its methods stands beside it."""

    def __init__(self, rank: int, ranks: int, orders: str) -> None:
        super().__init__(rank, ranks)
        self._orders = Path(orders)
        self._order: dict[str, Any] = {}
        self._calls = 0
        for name in COLLECTIVES:
            setattr(dist.ProcessGroup, name, self._watched(getattr(dist.ProcessGroup, name)))
        (self._orders / f"rank{rank}.pid").write_text(str(os.getpid()))

    def step(self, share: Any) -> Any:
        return self._at_work("step", super().step, share)

    def publish(self, model: str | None = None) -> Any:
        parts = self._at_work("publish", lambda: list(Learner.publish(self, model)))
        yield from (part for part in parts)  # Ray sends to its generator, and a list's iterator takes nothing

    def save(self, directory: str) -> None:
        self._at_work("save", super().save, directory)

    def _at_work(self, method: str, work: Callable[..., Any], *arguments: Any) -> Any:
        order = self._orders / f"rank{self._rank}.json"
        found = json.loads(order.read_text()) if order.exists() else {}
        if found.get("method") == method:
            order.unlink()
            self._order = found
        self._calls = 0
        try:
            return work(*arguments)
        finally:
            (self._orders / f"{method}.rank{self._rank}.calls").write_text(str(self._calls))
            self._order = {}

    def _watched(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def watched(group: Any, *arguments: Any, **named: Any) -> Any:
            self._calls += 1
            struck = self._order and self._calls >= self._order["call"]
            if struck and self._order.get("raises"):
                raise RuntimeError(self._order["raises"])
            begun = collective(group, *arguments, **named) if not struck or self._order["begun"] else None
            if struck:
                os.kill(os.getpid(), signal.SIGKILL)
            return begun

        return watched


@dataclass
class Strikes(Watcher):
    """Gives the next order after a step; `orders` are made of how many collectives a method has."""

    folder: Path = Path()
    orders: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)  # of ranks that were struck, and of those beside them

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def step(self, line: Any) -> None:
        super().step(line)
        if self.orders:
            self.pids |= {int(file.read_text()) for file in self.folder.glob("rank*.pid")}
        if self.orders:
            order = dict(self.orders.pop(0))
            made = int((self.folder / f"{order['method']}.rank{order['rank']}.calls").read_text())
            order["call"] = 1 + int(order["at"] * (made - 1))
            (self.folder / f"rank{order['rank']}.json").write_text(json.dumps(order))


class Ranks:
    """Learners of two ranks, and runs of a dataset's cross-entropy on them."""

    def __init__(self, models: dict[str, Path], prompts: dict[str, Path], root: Path, runner: Any) -> None:
        self.models, self.prompts, self.root, self.runner = models, prompts, root, runner
        self._runs = 0
        self.orders = root / "orders"
        self.orders.mkdir()

    def recipe(self, **changes: Any) -> Recipe:
        self._runs += 1
        small = {"cpus": 0.1, "threads": 1}
        tree: dict[str, Any] = {
            "run": {"name": f"ranks{self._runs}", "root": str(self.root / "runs"), "steps": 4},
            "models": {"student": {"path": str(self.models["student"])}},
            "data": {"prompts": str(self.prompts["data"])},
            "batch": {"prompts_per_step": 4, "tokens_per_microbatch": 64},
            "sampling": {"max_response_tokens": 16},
            "objective": {"prefix": "dataset", "target": "data", "support": "sampled", "reverse_weight": 0.0},
            "learner": {
                "ranks": 2,
                "dtype": "float32",
                "zero_stage": 3,
                "tokens_per_chunk": 16,
                "optimizer": {"name": "sgd", "lr": 0.1, "max_grad_norm": 0.0},
                "resources": small,
            },
            "rollout": {"max_context_tokens": 128},
            "reward": {"resources": small},
            "checkpoint": {"every": 1, "keep": 1},
        }
        return resolve_dtypes(parse_recipe(merged(tree, changes)), cpu_has_bf16=False)

    def pools(self, recipe: Recipe) -> Pools:
        """Not yet started; the learner's ranks are those that can be struck."""
        sleeping = simulated(Speeds())
        members = replace(REAL, rollout=sleeping.rollout, reward=sleeping.reward)
        pools = build_pools(recipe, RayTransport(), read_inputs(recipe).vocabulary, self.root / "logs", members)
        spec = pools.learner.startup.spec

        def struck(number: int) -> GangSpec:
            given = spec(number)
            arguments = tuple((*arguments, str(self.orders)) for arguments in given.arguments)
            return replace(given, cls=Struck, arguments=arguments)

        pools.learner.startup.spec = struck
        return pools

    def run(self, recipe: Recipe, watcher: Watcher, pools: Pools | None = None) -> Finished:
        """Raises what failed. Pools that are given outlive it."""
        made = pools or self.pools(recipe)
        directory = Path(recipe.run.root) / recipe.run.name

        async def story() -> int:
            try:
                return await Run(recipe, directory, read_inputs(recipe), made, watcher).execute()
            finally:
                for pool in made.all().values() if pools is None else ():
                    await pool.members.stop()

        return Finished(self.runner.run(story()), directory, recipe)
