"""The real Run over members that sleep instead of computing, in this process: for tests of what decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from actors.simulated.reward import SimulatedReward
from actors.simulated.rollout import SimulatedRollout
from actors.simulated.scorer import SimulatedScorer
from configs.hardware import resolve_dtypes
from configs.load import parse_recipe
from configs.names.own_code import is_own
from configs.schema import Recipe
from orchestrator.pools.layout import REAL, MemberSpecs, build_pools
from orchestrator.pools.transport import GangSpec, LocalTransport
from orchestrator.preflight.files import Inputs
from orchestrator.run import Run
from orchestrator.samples.prompts import Prompt, PromptStream
from orchestrator.weights.carriers import Carrier
from tests.unit.own_time import in_own_time

STEPS, GROUPS, EACH = 6, 4, 2  # steps, prompt groups a step, samples a group
VOCABULARY = 1000
TRAIN = [Prompt({"prompt": f"p{i}"}, {"student": [100 + i], "teacher": [7, 100 + i]}, None) for i in range(17)]
HELDOUT = [Prompt({"prompt": f"h{i}"}, {"student": [500 + i], "teacher": [7, 500 + i]}, None) for i in range(3)]
MEMBER = {"members": 2}


def simulated(speeds: Speeds) -> MemberSpecs:
    """Members that sleep, in every role but those for which the recipe names an engine of its own."""

    def learner(recipe: Recipe) -> GangSpec:
        config = recipe.learner
        if is_own(config.engine):
            return REAL.learner(recipe)
        arguments = tuple((speeds, rank, config.ranks) for rank in range(config.ranks))
        return GangSpec("learner", SimulatedLearner, arguments, config.resources)

    def rollout(recipe: Recipe) -> GangSpec:
        config = recipe.rollout
        if is_own(config.engine):
            return REAL.rollout(recipe)
        return GangSpec("rollout", SimulatedRollout, ((speeds, config.on_update),), config.resources)

    def scorer(recipe: Recipe, model: str, vocabulary: int, swap: int) -> GangSpec:
        config = recipe.scorer_of(model)
        if is_own(config.engine):
            return REAL.scorer(recipe, model, vocabulary, swap)
        return GangSpec(f"scorer.{model}", SimulatedScorer, ((speeds, vocabulary, swap),), config.resources)

    def reward(recipe: Recipe) -> GangSpec:
        if is_own(recipe.reward.engine):
            return REAL.reward(recipe)
        return GangSpec("reward", SimulatedReward, ((),), recipe.reward.resources)

    return MemberSpecs(
        rollout=rollout,
        teacher_rollout=lambda recipe: GangSpec(
            "teacher_rollout", SimulatedRollout, ((speeds,),), recipe.teacher_rollout.resources
        ),
        scorer=scorer,
        reward=reward,
        learner=learner,
    )


def recipe(root: Path, **changes: Mapping[str, Any] | int | str) -> Recipe:
    """A small recipe; `changes` are merged one level deep."""
    tree: dict[str, Any] = {
        "run": {"name": "sim", "root": str(root), "steps": STEPS, "seed": 5},
        "models": {"student": {"path": "/none"}, "teacher": {"path": "/none"}},
        "data": {"prompts": "/none"},
        "batch": {"prompts_per_step": GROUPS, "samples_per_prompt": EACH, "tokens_per_microbatch": 64},
        "sampling": {"max_response_tokens": 16},
        "objective": {"target": "teacher"},
        "learner": {"optimizer": {"lr": 0.01}},
        "rollout": MEMBER,
        "scorer": {"teacher": MEMBER},
        "reward": MEMBER | {"rules": [{"kind": "length", "low": 1, "high": 8}]},
        "stream": {"coalesce_samples": 1},
        "checkpoint": {"every": 2, "keep": 2},
    }
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, Mapping) else value
    return resolve_dtypes(parse_recipe(tree), cpu_has_bf16=False)


@dataclass
class Simulation:
    """One Run over simulated members in this process. `on_step` is called with the run and every line of metrics."""

    recipe: Recipe
    on_step: Callable[[Run, Mapping[str, Any]], None] = lambda run, line: None
    vocabulary: int = VOCABULARY
    train: Sequence[Prompt] = field(default_factory=lambda: TRAIN)
    heldout: Sequence[Prompt] = field(default_factory=lambda: HELDOUT)
    transport: LocalTransport = field(default_factory=LocalTransport)
    carrier: Carrier | None = None  # None: the one that the recipe names
    speeds: Speeds = field(default_factory=Speeds)
    members: MemberSpecs | None = None  # None: those that sleep, at these speeds
    sets: Mapping[str, Sequence[Prompt]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.notices: list[str] = []
        self.inputs = Inputs(self.train, self.heldout, None, self.vocabulary, (1,), 0, 0, sets=self.sets)
        members = self.members or simulated(self.speeds)
        self.pools = build_pools(self.recipe, self.transport, self.vocabulary, None, members)
        self.directory = Path(self.recipe.run.root) / self.recipe.run.name
        self.run = Run(self.recipe, self.directory, self.inputs, self.pools, self, self.carrier)

    def phase(self, text: str) -> None: ...

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def evaluated(self, when: str, result: Mapping[str, Any] | None, of: str = "") -> None: ...

    def step(self, line: Mapping[str, Any]) -> None:
        self.on_step(self.run, line)

    def go(self, seconds: float = 20.0) -> int:
        async def within() -> int:
            return await asyncio.wait_for(self.run.execute(), seconds)

        return asyncio.run(within())

    def go_in_own_time(self) -> int:
        return in_own_time(self.run.execute())


def metrics(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "sim" / "metrics.jsonl").read_text().splitlines()]


def trained(root: Path, name: str = "step_*") -> list[dict[str, Any]]:
    """Rows of the recorded samples in step order, by uid within a step, each with the step it was trained in."""
    rows: list[dict[str, Any]] = []
    for file in sorted((root / "sim" / "samples").glob(f"{name}.rank*.arrow")):
        with pa.OSFile(str(file)) as source:
            batch = pa.ipc.open_file(source).read_all().to_pylist()
        rows += [row | {"step": file.name.split(".")[0]} for row in sorted(batch, key=lambda row: row["uid"])]
    return rows


def expected_order(steps: int = STEPS) -> list[tuple[str, str, list[int]]]:
    """(step, uid, prompt ids) of every sample of a run, from the order of prompts alone."""
    stream = PromptStream(TRAIN, 5, True)
    groups = range(steps * GROUPS)
    return [
        (f"step_{i // GROUPS + 1:06d}", f"{i:08d}.{k:03d}", stream[i].ids["student"])
        for i in groups
        for k in range(EACH)
    ]


def order_of(rows: list[dict[str, Any]]) -> list[tuple[str, str, list[int]]]:
    return [(row["step"], row["uid"], row["prompt_ids"]) for row in rows]


def assert_each_once(root: Path, steps: int = STEPS, skipped: Container[str] = ()) -> None:
    """Every sample of the data order was trained, once, behind its own prompt; but the skipped ones."""
    rows = [(uid, prompt) for _, uid, prompt in order_of(trained(root))]
    assert sorted(rows) == [(uid, prompt) for _, uid, prompt in expected_order(steps) if uid not in skipped]


def assert_none_aged(root: Path, bound: int) -> None:
    """No token that was sampled for a trained response is older than the bound, with loss or without, and none was
    masked or sampled again to keep to it."""
    lines = {f"step_{line['step']:06d}": line for line in metrics(root)}
    assert not any(line["tokens_masked"] or line["samples_aged"] for line in lines.values())
    ages = {lines[row["step"]]["policy_version"] - 1 - version for row in trained(root) for version in row["versions"]}
    assert 0 <= min(ages) <= max(ages) <= bound, ages


def learned(root: Path) -> list[list[Any]]:
    """What a step learned: all of its metrics but versions, times and what depends on who ran ahead."""
    names = ("step", "loss", "reverse_kl", "grad_norm", "lr", "reward_mean", "response_length", "tokens_trained")
    return [[line[name] for name in names] for line in metrics(root)]


def stop_at(step: int) -> Callable[[Run, Mapping[str, Any]], None]:
    return lambda run, line: run.stop() if line["step"] == step else None


def crash_at(step: int) -> Callable[[Run, Mapping[str, Any]], None]:
    def crash(run: Run, line: Mapping[str, Any]) -> None:
        if line["step"] == step:
            raise RuntimeError("pulled the plug")

    return crash
