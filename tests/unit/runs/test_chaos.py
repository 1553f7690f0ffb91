"""Runs under at least twenty kills, hangs and lost nodes: no sample is lost or trained twice, and none is left over."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from orchestrator.run import DONE
from tests.unit.batches import Batches
from tests.unit.chaos import Chaos, Nodes, poison, run_in_chaos
from tests.unit.own_time import in_own_time
from tests.unit.simulation import (
    EACH,
    GROUPS,
    Simulation,
    assert_each_once,
    assert_none_aged,
    metrics,
    recipe,
    trained,
)

STEPS, STRIKES = 60, 20
ROLES = ("rollout", "scorer.teacher", "reward", "learner")
ROLLOUT = {"members": 3, "max_concurrent": 4}
SPEED = Speeds(rollout=0.2, score=0.01)
SWAPPED = {"student": {"path": "/none"}, "teacher": {"path": "/none", "swaps": {20: "/second", 40: "/third"}}}
DEADLINES = {"start": 60.0, "generate": 30.0, "score": 30.0, "reward": 30.0, "load": 30.0, "learn": 60.0}


def settings(root: Path, **changes: Any) -> Any:
    base: dict[str, Any] = {
        "run": {"steps": STEPS},
        "rollout": ROLLOUT,
        "scorer": {"teacher": {"members": 3, "max_queued_tokens": 40}},
        "learner": {"ranks": 2},
        "deadlines": DEADLINES,
        "stream": {"coalesce_ms": 1000.0, "coalesce_samples": 4},  # a few ticks: of several lengths
    }
    return recipe(root, **base | changes)


def assert_nothing_lost(
    root: Path, simulation: Simulation, chaos: Chaos, batches: Batches, bound: int, guilty: Set[str] = frozenset()
) -> None:
    """`guilty`: samples that may be quarantined."""
    assert len(chaos.done) >= STRIKES, f"the run ended after {chaos.done}"
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["skipped"].keys() <= guilty, "nobody is blamed for what struck from outside"
    assert_each_once(root, STEPS, summary["skipped"])
    batches.assert_trained(trained(root))
    lines = metrics(root)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    versions = [line["policy_version"] for line in lines]
    assert versions == sorted(set(versions))
    if not bound or simulation.recipe.age_policy == "wait":
        assert_none_aged(root, bound)
    for row in trained(root):
        ages = [lines[int(row["step"].removeprefix("step_")) - 1]["policy_version"] - 1 - v for v in row["versions"]]
        carries = Counter(t for start, end in row["loss_spans"] for t in range(start, end))
        assert set(carries) == {t for t, age in enumerate(ages) if age <= bound} and set(carries.values()) <= {1}
    run = simulation.run
    assert run.stage is not None and not len(run.stage.rollouts.intake.segments)
    sizes = {role: run.recipe.roles[role].members for role in simulation.pools.all()}
    assert {role: len(pool.members) for role, pool in simulation.pools.all().items()} == sizes
    ours = {id(actor) for pool in simulation.pools.all().values() for m in pool.members for actor in m.actors}
    assert chaos.transport.living() <= ours, "no member is left behind"


@pytest.mark.parametrize("role", ROLES)
def test_twenty_kills_of_one_role_lose_no_sample(tmp_path: Path, batches: Batches, role: str) -> None:
    code, simulation, chaos = run_in_chaos(settings(tmp_path), SPEED, 1, [role], STRIKES, 4.0)
    assert code == DONE
    assert_nothing_lost(tmp_path, simulation, chaos, batches, 0)


@pytest.mark.parametrize("moment", range(3))
@pytest.mark.parametrize("role", ROLES)
def test_a_member_of_any_role_may_die_while_the_run_starts(tmp_path: Path, role: str, moment: int) -> None:
    transport = Nodes(random.Random(moment))
    simulation = Simulation(settings(tmp_path, run={"steps": 6}), transport=transport, speeds=SPEED)
    pool = simulation.pools.all()[role]

    async def kill_one() -> None:
        while not (starting := [m for m in pool.members if m.actors]):
            await asyncio.sleep(0.01)
        await asyncio.sleep(moment / 4)
        await transport.kill(starting[0].actors)

    async def story() -> int:
        code, _ = await asyncio.gather(simulation.run.execute(), kill_one())
        return code

    assert in_own_time(story()) == DONE
    summary = json.loads((simulation.directory / "summary.json").read_text())
    assert summary["restarts"].get(role, 0) + summary["learner_rebuilds"] == 1
    assert_each_once(tmp_path, 6)
    assert len(pool.members.serving()) == simulation.recipe.roles[role].members


@pytest.fixture(scope="module")
def missed() -> Iterator[list[int]]:
    """Of each run ahead of the learner: payloads that went with a node while the learner waited for them. Which run has
    some depends on threads; not one of three would mean that the case is tested nowhere."""
    found: list[int] = []
    yield found
    assert len(found) < 3 or any(found), "no node took payloads that the learner waited for"


@pytest.mark.parametrize(
    ("bound", "segments", "on_update"),
    [(0, 0, "keep"), (0, 3, "keep"), (2, 0, "keep"), (2, 3, "keep"), (2, 3, "abort")],
)
def test_chaos_over_all_roles_with_lost_nodes(
    tmp_path: Path, batches: Batches, bound: int, segments: int, on_update: str, missed: list[int]
) -> None:
    """The teacher is swapped twice. Every step is trained with the scores of its own teacher."""
    rollout = ROLLOUT | {"on_update": on_update}
    changed = settings(tmp_path, max_staleness=bound, stream_tokens=segments, rollout=rollout, models=SWAPPED)
    code, simulation, chaos = run_in_chaos(changed, SPEED, 3, ROLES, STRIKES, 4.0, nodes=True)
    assert code == DONE and "node" in chaos.done
    if bound:
        missed.append(len(chaos.transport.misses))
    assert_nothing_lost(tmp_path, simulation, chaos, batches, bound)
    for step, samples in batches.scorers.items():
        first, last = changed.swap_at("teacher", step - bound), changed.swap_at("teacher", step)
        assert all(first <= version <= last for by in samples.values() for version in by.values())


@pytest.mark.parametrize("role", ROLES)
def test_twenty_members_of_one_role_fall_sick_and_live(tmp_path: Path, batches: Batches, role: str) -> None:
    """Each is replaced and ended, and what it was to do is done again."""
    code, simulation, chaos = run_in_chaos(settings(tmp_path), SPEED, 1, [role], STRIKES, 4.0, sick=1.0)
    assert code == DONE and set(chaos.done) == {f"sick {role}"}
    summary = json.loads((simulation.directory / "summary.json").read_text())
    replaced = sum(summary["restarts"].values()) + summary["learner_rebuilds"]
    unasked = len(chaos.transport.faults)  # fell sick behind their last call
    assert replaced == STRIKES - unasked and unasked <= 1
    assert_nothing_lost(tmp_path, simulation, chaos, batches, 0)


@pytest.mark.parametrize("seed", range(2))
def test_sick_members_among_the_dead_and_the_lost(tmp_path: Path, batches: Batches, seed: int) -> None:
    changed = settings(tmp_path, max_staleness=2, stream_tokens=3 * (seed % 2))
    code, simulation, chaos = run_in_chaos(changed, SPEED, seed, ROLES, STRIKES, 4.0, nodes=True, sick=0.5)
    assert code == DONE and {done.split()[0] for done in chaos.done} >= {"sick", "kill", "node"}
    assert_nothing_lost(tmp_path, simulation, chaos, batches, 2)


def test_chaos_where_learner_and_engines_take_turns(tmp_path: Path, batches: Batches) -> None:
    turns = settings(tmp_path, colocate=True, learner={"ranks": 2, "zero_stage": 2})
    code, simulation, chaos = run_in_chaos(turns, SPEED, 1, ROLES, STRIKES, 4.0, nodes=True)
    assert code == DONE
    assert_nothing_lost(tmp_path, simulation, chaos, batches, 0)


@pytest.mark.parametrize("on_stale", ["wait", "mask_tokens", "drop"])
def test_chaos_beside_a_poisoned_sample(
    tmp_path: Path, batches: Batches, monkeypatch: pytest.MonkeyPatch, on_stale: str
) -> None:
    """The other sample of its group may be lost with a node or age, before the scores and after."""
    poison(monkeypatch, f"{GROUPS:08d}.000", 10.0)
    changed = settings(tmp_path, max_staleness=1, on_stale=on_stale)
    code, simulation, chaos = run_in_chaos(changed, SPEED, 3, ROLES, STRIKES, 4.0, nodes=True)
    assert code == DONE and "node" in chaos.done
    assert bool(sum(line["samples_aged"] for line in metrics(tmp_path))) == (on_stale != "wait")
    assert f"{GROUPS:08d}.000" in simulation.run.progress.skipped
    guilty = {f"{GROUPS:08d}.{sample:03d}" for sample in range(EACH)}
    assert_nothing_lost(tmp_path, simulation, chaos, batches, 1, guilty)
