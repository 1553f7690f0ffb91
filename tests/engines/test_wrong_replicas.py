"""Real torch scorers over Ray of which one is wrong: fixed texts find it whenever it loads weights or wakes up, and it
is replaced; if its replacement is wrong too, the run ends. All other roles of the runs are simulated."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.scoring.scorer import Scorer
from actors.simulated.known import Speeds
from actors.wire.records import ScoreHeader
from configs.hardware import resolve_dtypes
from configs.load import parse_recipe
from configs.schema import Recipe
from orchestrator.pools.layout import REAL, build_pools
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import GangSpec, RayTransport
from orchestrator.preflight.files import read_inputs
from orchestrator.run import FAILED, Run
from orchestrator.surface.ending import fail
from orchestrator.surface.outcome import first_of
from orchestrator.weights.canary_watch import TeacherWrong
from tests.engines.shared import Finished, Watcher, merged
from tests.unit.simulation import simulated

SMALL: dict[str, Any] = {"cpus": 0.1, "threads": 1}
STEPS, MANY = 4, 300  # many: until a replacement has come


class Fallible(Scorer):
    """A scorer that goes wrong where a file of the folder `faults` says so: the first to come there takes the file."""

    def __init__(self, *arguments: Any) -> None:
        *own, faults = arguments
        super().__init__(*own)
        self._faults = Path(faults)

    async def start(self) -> None:
        await super().start()
        if self._takes("start"):  # half loaded
            self._blank("model.layers.1.")

    async def swap(self, version: int, model: str) -> int:
        stale = version > 0 and self._takes("swap")
        return await super().swap(version, str(self._model) if stale else model)

    async def wake(self) -> None:
        if self._takes("wake"):
            self._blank("lm_head.")  # uniform
        await super().wake()

    async def score(self, *arguments: Any) -> tuple[Any, ScoreHeader]:
        if self._takes("score"):
            self._blank("lm_head.")
        return await super().score(*arguments)

    def _takes(self, fault: str) -> bool:
        try:
            (self._faults / fault).unlink()
        except FileNotFoundError:
            return False
        return True

    @torch.no_grad()
    def _blank(self, prefix: str) -> None:
        model: Any = self._engine._model  # type: ignore[union-attr]
        for name, parameter in model.named_parameters():
            if name.startswith(prefix):
                parameter.zero_()


@dataclass
class Noting(Watcher):
    """Keeps what is said to a person, and asks for faults after the first step."""

    later: Sequence[Path] = ()
    notices: list[str] = field(default_factory=list)

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def step(self, line: Mapping[str, Any]) -> None:
        super().step(line)
        for fault in self.later if line["step"] == 1 else ():
            fault.touch()


@dataclass
class Ward:
    """The same two scorers for one run after another, and the folder of their faults."""

    base: dict[str, Any]
    pools: Pools
    faults: Path
    runner: asyncio.Runner
    watcher: Noting = field(default_factory=Noting)

    def run(self, name: str, **changes: Any) -> Run:
        """A run that is not begun, over the members that serve."""
        recipe = resolved(merged(self.base, {"run": {"name": name}, **changes}))
        self.watcher = Noting()
        self.watcher.pools = self.pools.all()
        return Run(recipe, Path(recipe.run.root) / name, read_inputs(recipe), self.pools, self.watcher)

    def finish(self, run: Run) -> Finished:
        """A successor that still starts is waited for: it would take the next test's faults."""

        async def settled() -> int:
            code, members = await run.execute(), self.pools.scorers["teacher"].members
            while not all(member.serving for member in members):
                await asyncio.sleep(0.1)
            return code

        return Finished(self.runner.run(settled()), run.directory, run.recipe)

    @property
    def numbers(self) -> set[int]:
        return {member.number for member in self.pools.scorers["teacher"].members.serving()}

    @property
    def said(self) -> list[str]:
        """Why members were found wrong."""
        return [text for text in self.watcher.notices if "its scores of fixed texts" in text]


def resolved(tree: dict[str, Any]) -> Recipe:
    return resolve_dtypes(parse_recipe(tree), cpu_has_bf16=False)


def tree_of(models: Mapping[str, Path], prompts: Mapping[str, Path], root: Path) -> dict[str, Any]:
    teacher = {"members": 2, "dtype": "float32", "max_context_tokens": 128, "resources": SMALL}
    return {
        "run": {"name": "ward", "root": str(root), "steps": STEPS},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models["teacher"])}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 4, "samples_per_prompt": 2},
        "sampling": {"max_response_tokens": 32},
        "objective": {"target": "teacher", "support": "sampled"},
        "learner": {"zero_stage": 2, "optimizer": {"lr": 0.01}, "resources": SMALL},
        "rollout": {"max_context_tokens": 128, "resources": SMALL},
        "scorer": {"teacher": teacher},
        "reward": {"resources": SMALL},
    }


@pytest.fixture(scope="module")
def ward(
    ray_cluster: None,
    models: dict[str, Path],
    prompts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    runner: asyncio.Runner,
) -> Iterator[Ward]:
    root, faults = tmp_path_factory.mktemp("ward"), tmp_path_factory.mktemp("faults")
    tree = tree_of(models, prompts, root)
    recipe = resolved(tree)

    def fallible(*arguments: Any) -> GangSpec:
        (own,) = (given := REAL.scorer(*arguments)).arguments
        return replace(given, cls=Fallible, arguments=((*own, str(faults)),))

    members = replace(simulated(Speeds(rollout=0.002)), scorer=fallible)
    pools = build_pools(recipe, RayTransport(), read_inputs(recipe).vocabulary, root / "logs", members)

    async def stop() -> None:
        await asyncio.gather(*(pool.members.stop(at_once=True) for pool in pools.all().values()))

    yield Ward(tree, pools, faults, runner)
    runner.run(stop())


@pytest.mark.timeout(240)
def test_a_replica_that_starts_half_loaded_is_replaced_before_it_scores(ward: Ward) -> None:
    """Nobody knows which of two is right: both are replaced, and their successors agree."""
    (ward.faults / "start").touch()
    done = ward.finish(ward.run("start"))
    assert done.code == 0 and len(done.lines) == STEPS
    assert ward.numbers == {2, 3} and done.summary["restarts"] == {"scorer.teacher": 2}
    assert ward.said and all("nats a token" in text for text in ward.said)
    assert all("(0.001 and 0.01 are allowed)" in text for text in ward.said)


@pytest.mark.acceptance
@pytest.mark.timeout(240)
def test_a_replica_that_keeps_its_weights_at_a_swap_is_replaced_before_it_scores(
    ward: Ward, models: dict[str, Path]
) -> None:
    """It is the first to load the new ones; the next to load them differs, and again both are replaced."""
    scorers = ward.pools.scorers["teacher"]
    spec, poet = scorers.startup.spec, str(models["poet"])
    run = ward.run("swap", models={"teacher": {"swaps": {3: poet}}})
    (ward.faults / "swap").touch()
    try:
        done = ward.finish(run)
    finally:
        scorers.startup.spec = spec
    assert done.code == 0 and len(done.lines) == STEPS
    assert done.summary["restarts"] == {"scorer.teacher": 2}
    assert [text for text in ward.said if "of version 3 its scores" in text]


@pytest.mark.timeout(240)
def test_a_replica_that_wakes_uniform_is_replaced_before_it_scores(ward: Ward) -> None:
    run = ward.run("wake", colocate=True)
    ward.watcher.later = [ward.faults / "wake"]
    done = ward.finish(run)
    assert done.code == 0 and len(done.lines) == STEPS
    assert done.summary["restarts"] == {"scorer.teacher": 1}
    assert [text for text in ward.said if "all of its scores of fixed texts are -" in text]
    assert not [text for text in ward.watcher.notices if "suspicious" in text], "it is found before it scores"


@pytest.mark.acceptance
@pytest.mark.timeout(240)
def test_a_replica_that_loses_its_weights_and_then_its_successor_end_the_run_with_the_numbers(ward: Ward) -> None:
    """Its scores raise an alarm, so that it is found. Its successor starts half loaded."""
    run = ward.run("lost", run={"name": "lost", "steps": MANY})
    ward.watcher.later = [ward.faults / "score", ward.faults / "start"]
    before = ward.numbers
    with pytest.raises(Exception) as raised:
        ward.finish(run)
    assert isinstance(first_of(raised.value), TeacherWrong)
    assert [text for text in ward.watcher.notices if "scores of teacher are suspicious: " in text]

    code, line = ward.runner.run(fail(run, raised.value))
    said, traceback = line.split("\n")
    assert code == FAILED == 1 and "  traceback: " in traceback
    last = max(before, default=1) + 1
    assert said.startswith(
        f"the run failed: scorer.teacher-{last}: of version 0 its scores of fixed texts differ by "
    ), said
    assert "nats a token and at most" in said and "(0.001 and 0.01 are allowed)" in said
    assert "as it was with the member before it" in said
