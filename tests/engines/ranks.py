"""Real learner ranks without any engine beside them, which tests strike at work: Ray, DeepSpeed over gloo."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from actors.learning import learner
from actors.learning.learner import Learner
from actors.learning.optimizer import deepspeed_config
from actors.simulated.known import Speeds
from configs.hardware import resolve_dtypes
from configs.load import parse_recipe
from configs.roles.learner import Learner as LearnerConfig
from configs.schema import Recipe
from orchestrator.pools.layout import REAL, build_pools
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import GangSpec, RayTransport
from orchestrator.preflight.files import read_inputs
from orchestrator.run import Run
from tests.engines.shared import Finished, Watcher, merged
from tests.unit.simulation import simulated

KINDS = ("reduce", "gather", "scatter", "broadcast", "barrier", "all_to_all", "alltoall")
COLLECTIVES = [  # torch renames them
    name for name in vars(dist.ProcessGroup) if any(kind in name for kind in KINDS) and not name.startswith("__")
]
LATER = 2.0  # seconds by which a rank outlives its survivor's error


@dataclass(frozen=True)
class Order:
    """Strike a rank at one of a method's collectives: `at` 0 the first, 1 the last, before or after it has begun. It
    dies, or raises these words instead; so do the ranks after it, as many `times` in all. Where `survivor` says
    something, the other rank has raised that by then."""

    method: str
    rank: int
    at: float
    begun: bool = False
    raises: str = ""
    survivor: str = ""
    times: int = 1


def fault(words: str) -> Exception:
    """What torch raises with these words."""
    return torch.OutOfMemoryError(words) if "out of memory" in words else RuntimeError(words)


def parted(config: LearnerConfig, ranks: int) -> dict[str, Any]:
    """DeepSpeed's view of a learner that keeps no parameter whole under ZeRO-3, as it would all of a tiny model's."""
    made = deepspeed_config(config, ranks)
    return made | {"zero_optimization": made["zero_optimization"] | {"stage3_param_persistence_threshold": 0}}


class Struck(Learner):
    """A rank that is struck inside a collective when a file in the folder `orders` says so. How many collectives it
    made in each of its methods stands beside it, and at which it was struck. Under ZeRO-3 it parts parameters however
    small, so that a publish gathers them."""

    def __init__(self, rank: int, ranks: int, orders: str) -> None:
        super().__init__(rank, ranks)
        self._orders = Path(orders)
        self._order: Order | None = None
        self._last = 0  # the collective at which it is to be struck
        self._calls = 0
        self._times: Counter[str] = Counter()  # that each method was called
        learner.deepspeed_config = parted
        for name in COLLECTIVES:
            setattr(dist.ProcessGroup, name, self._watched(name, getattr(dist.ProcessGroup, name)))
        (self._orders / f"rank{rank}.pid").write_text(str(os.getpid()))

    def step(self, share: Any) -> Any:
        return self._at_work("step", super().step, share)

    def publish(self, model: str | None = None) -> Any:
        parts = self._at_work("publish", lambda: list(Learner.publish(self, model)))
        yield from (part for part in parts)  # Ray sends to its generator, and a list's iterator takes nothing

    def save(self, directory: str) -> None:
        self._at_work("save", super().save, directory)

    def _at_work(self, method: str, work: Callable[..., Any], *arguments: Any) -> Any:
        file, made = self._orders / f"rank{self._rank}.json", self._made(method)
        order = Order(**json.loads(file.read_text())) if file.exists() else None
        if order and order.method == method:
            left = replace(order, times=order.times - 1)
            file.write_text(json.dumps(asdict(left))) if left.times else file.unlink()
            self._order, self._last = order, 1 + round(order.at * (int(made.read_text()) - 1))
        self._calls = 0
        try:
            found = work(*arguments)
            made.write_text(str(self._calls))
            return found
        finally:
            self._order = None
            self._times[method] += 1

    def _made(self, method: str) -> Path:
        """The file of how many collectives a method makes: of its first call in a process, which learns what to fetch
        ahead, and of later ones."""
        return self._orders / f"{method}.{'later' if self._times[method] else 'first'}.rank{self._rank}.calls"

    def _watched(self, name: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def watched(group: Any, *arguments: Any, **named: Any) -> Any:
            self._calls += 1
            order = self._order if self._calls == self._last else None
            if order is None:
                return collective(group, *arguments, **named)
            if order.begun:
                collective(group, *arguments, **named)
            self._note(name, order)
            if order.raises:
                raise fault(order.raises)
            time.sleep(LATER if order.survivor else 0.0)
            os.kill(os.getpid(), signal.SIGKILL)

        return watched

    def _note(self, name: str, order: Order) -> None:
        struck = {"collective": name, "number": self._calls} | asdict(order)
        with (self._orders / "struck.jsonl").open("a") as file:
            file.write(json.dumps(struck) + "\n")


@dataclass
class Strikes(Watcher):
    """Gives the next order after a step that is new, from the third on: by then a process has called every method
    twice."""

    folder: Path = Path()
    orders: list[Order] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)  # of ranks that were struck, and of those beside them

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def step(self, line: Mapping[str, Any]) -> None:
        new = line["step"] > max([2, *(seen["step"] for seen in self.lines)])
        super().step(line)
        if new and self.orders:
            self.pids |= {int(file.read_text()) for file in self.folder.glob("rank*.pid")}
            self._give(self.orders.pop(0))

    def _give(self, order: Order) -> None:
        given = [order]
        if order.survivor:
            given.append(replace(order, rank=1 - order.rank, raises=order.survivor))
        for one in given:
            (self.folder / f"rank{one.rank}.json").write_text(json.dumps(asdict(one)))

    @property
    def rebuilds(self) -> list[str]:
        """What was said of each death of the learner, in one line."""
        return [text.splitlines()[0] for text in self.notices if "the learner is rebuilt" in text]


def struck(folder: Path) -> list[dict[str, Any]]:
    """Every strike so far: its order, the name of the collective, and its number in the method."""
    file = folder / "struck.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def places(strikes: Sequence[Mapping[str, Any]]) -> str:
    """At which collectives ranks were struck, in words: each kind, with the numbers it had in its method."""
    kinds = Counter(strike["collective"].strip("_") for strike in strikes)
    numbers = {kind: sorted(s["number"] for s in strikes if s["collective"].strip("_") == kind) for kind in kinds}
    return "; ".join(f"{n} {kind} (no. {', '.join(map(str, numbers[kind]))})" for kind, n in kinds.most_common())


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

    def pools(self, recipe: Recipe, **members: Any) -> Pools:
        """Not yet started. The learner's ranks are those that can be struck, the others sleep, but for `members`."""

        def learner(recipe: Recipe) -> GangSpec:
            given = REAL.learner(recipe)
            arguments = tuple((*arguments, str(self.orders)) for arguments in given.arguments)
            return replace(given, cls=Struck, arguments=arguments)

        specs = replace(simulated(Speeds()), **{"learner": learner} | members)
        return build_pools(recipe, RayTransport(), read_inputs(recipe).vocabulary, self.root / "logs", specs)

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
