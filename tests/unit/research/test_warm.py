"""Engines of one arm serve the next: real runs over simulated members in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.scorer import SimulatedScorer
from configs.schema import Recipe
from orchestrator.pools.pools import Pools
from orchestrator.pools.transport import LocalTransport
from orchestrator.run import DONE, Run
from orchestrator.surface.research.warm import WarmEngines
from tests.unit.simulation import VOCABULARY, Simulation, recipe, simulated


class Arms:
    """Arms one after the other, each in an event loop of its own, as a sweep has it."""

    def __init__(self, root: Path) -> None:
        self.root, self.transport = root, LocalTransport()
        self.engines = WarmEngines(root / "sweep", simulated(Speeds()))
        self.engines._transport = self.transport

    def run(self, name: str, code: int = DONE, **changes: Mapping[str, Any] | int) -> Pools:
        """Run an arm to its end, and hand its engines back as one that ended with `code`."""
        arm = recipe(self.root, **changes)
        arm = arm.model_copy(update={"run": arm.run.model_copy(update={"name": name})})
        return asyncio.run(self._run(arm, code))

    async def _run(self, arm: Recipe, code: int) -> Pools:
        inputs = Simulation(arm, transport=self.transport).inputs
        pools = await self.engines.pools(arm, VOCABULARY, None)
        assert await Run(arm, self.root / arm.run.name, inputs, pools, Silent()).execute() == DONE
        self.actors = {role: [member.lead for member in pool.members] for role, pool in pools.all().items()}
        await self.engines.end(pools, code == DONE, at_once=False)
        return pools

    def learned(self, name: str) -> list[Any]:
        lines = (self.root / name / "metrics.jsonl").read_text().splitlines()
        return [[json.loads(line)[key] for key in ("loss", "reward_mean", "response_length")] for line in lines]

    def alive(self, actor: Any) -> bool:
        return id(actor) not in self.transport._dead


class Silent:
    def phase(self, text: str) -> None: ...

    def notice(self, text: str) -> None: ...

    def evaluated(self, when: str, result: Mapping[str, Any] | None, of: str = "") -> None: ...

    def step(self, line: Mapping[str, Any]) -> None: ...


@pytest.fixture
def arms(tmp_path: Path) -> Arms:
    return Arms(tmp_path)


def test_an_arm_on_warm_engines_learns_what_it_learns_alone(arms: Arms, tmp_path: Path) -> None:
    arms.run("first", run={"seed": 1})
    first = arms.actors
    arms.run("second", run={"seed": 2}, learner={"optimizer": {"lr": 0.02}})
    assert arms.actors == first, "every member serves on"
    alone = Arms(tmp_path / "alone")
    alone.run("second", run={"seed": 2}, learner={"optimizer": {"lr": 0.02}})
    assert arms.learned("second") == alone.learned("second") != arms.learned("first")
    asyncio.run(arms.engines.close())
    assert not any(arms.alive(actor) for role in first.values() for actor in role), "the sweep leaves none"


def test_a_role_that_is_made_of_something_else_is_started_anew(arms: Arms) -> None:
    arms.run("first")
    first = arms.actors
    arms.run("second", rollout={"members": 2, "on_update": "abort"}, scorer={"teacher": {"members": 3}})
    assert arms.actors["learner"] == first["learner"]
    for role in ("rollout", "scorer.teacher"):
        assert not any(arms.alive(actor) for actor in first[role]), "ended before the next arm takes their place"
    assert len(arms.actors["scorer.teacher"]) == 3


def test_members_of_a_kind_serve_on_as_members_of_that_kind(arms: Arms) -> None:
    wide = {"kinds": {"wide": {"max_concurrent": 8}}}
    arms.run("first", rollout=wide)
    first = arms.actors["rollout"]
    pools = arms.run("second", rollout=wide, run={"seed": 2})
    assert arms.actors["rollout"] == first and len(first) == 3
    assert pools.rollout is not None and [m.kind for m in pools.rollout.members] == ["", "", "wide"]
    arms.run("third", rollout={"members": 3})
    assert not set(map(id, arms.actors["rollout"])) & set(map(id, first)), "as many, of another size"


@pytest.mark.parametrize("code", [1, 3], ids=["failed", "stopped"])
def test_an_arm_that_did_not_come_to_its_end_leaves_nothing(arms: Arms, code: int) -> None:
    arms.run("first", code)
    first = arms.actors
    assert not any(arms.alive(actor) for role in first.values() for actor in role)
    arms.run("second")
    assert not set(map(id, arms.actors["rollout"])) & set(map(id, first["rollout"]))


def test_a_member_that_died_meanwhile_is_started_anew(arms: Arms) -> None:
    arms.run("first")
    first = arms.actors
    asyncio.run(arms.transport.kill([first["rollout"][0]]))
    arms.run("second")
    assert len(arms.actors["rollout"]) == 2 and not set(map(id, first["rollout"])) & set(
        map(id, arms.actors["rollout"])
    )
    assert arms.actors["learner"] == first["learner"] and arms.learned("second") == arms.learned("first")


def test_engines_that_take_turns_with_the_learner_are_not_kept(arms: Arms) -> None:
    arms.run("first", colocate=True, learner={"zero_stage": 2})
    assert not any(arms.alive(actor) for role in arms.actors.values() for actor in role)


def test_a_class_of_a_users_own_is_started_anew(arms: Arms) -> None:
    """Nothing says what it remembers."""
    own = {"teacher": {"members": 1, "engine": "tests.unit.research.test_warm:Own"}}
    arms.run("first", scorer=own)
    first = arms.actors
    arms.run("second", scorer=own)
    assert arms.actors["scorer.teacher"] != first["scorer.teacher"] and arms.actors["reward"] == first["reward"]


class Own(SimulatedScorer):
    def __init__(self, config: Any, model: str, vocabulary: int, version: int) -> None:
        super().__init__(Speeds(), vocabulary, version)


def test_members_share_memory_under_the_sweeps_name(arms: Arms) -> None:
    """The folder of an arm's own name is swept when the arm ends."""
    placed = arms.engines.placed(recipe(arms.root))
    assert (placed.run.name, placed.run.root) == ("sweep", str(arms.root))
