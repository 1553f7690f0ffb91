"""Guilty groups are found within a bound of deaths and rounds, and no other group is blamed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.rollout import SimulatedRollout
from orchestrator.pools.pool import CallFailed
from orchestrator.pools.suspects import DEATHS, MOMENT, Nodes, Suspects
from orchestrator.run import DONE, Run
from orchestrator.samples.flow import isolate
from orchestrator.samples.leases import FreeSlots, Leases
from tests.unit import chaos
from tests.unit.simulation import Simulation, assert_each_once, recipe

GROUPS = 32


def found(guilty: set[int], members: int, seed: int = 0) -> tuple[int, int, set[int]]:
    """Rounds, deaths, and who is found guilty of 32 groups that two engines took along twice as they died together. In
    a round every idle member has one lease; it dies where a guilty group is among it, at a moment of its own."""
    rng, suspects = random.Random(seed), Suspects()
    leases = Leases(GROUPS, 2, 0, 1, suspects=suspects)
    many = {"student": {member: FreeSlots(64, idle=True) for member in range(members)}}
    two = {"student": {0: FreeSlots(GROUPS, idle=True), 1: FreeSlots(GROUPS, idle=True)}}
    for _ in range(2):
        for lease in leases.grant(0, two):
            leases.settle(lease)
            leases.lose(lease.tickets, died=True)
    assert all(suspects.suspected(index) for index in range(GROUPS))
    rounds, deaths, blamed = 0, 0, set[int]()
    while granted := leases.grant(0, many):
        rounds += 1
        for lease in granted:
            groups = sorted({ticket.index for ticket in lease.tickets})
            leases.settle(lease)
            if guilty & set(groups):
                deaths += 1
                whole = {index for index in groups if index not in guilty and rng.random() < 0.5}
                blamed |= leases.lose([t for t in lease.tickets if t.index not in whole], died=True)
    return rounds, deaths, blamed


@pytest.mark.parametrize("guilty", range(0, GROUPS, 5))
def test_one_guilty_group_of_32_is_alone_after_as_many_deaths_as_halvings(guilty: int) -> None:
    rounds, deaths, blamed = found({guilty}, members=4, seed=guilty)
    assert blamed == {guilty}
    assert deaths <= 4 + DEATHS, "among 16, 8, 4 and 2, and then alone"
    assert rounds <= 4 + DEATHS


def test_32_innocent_groups_are_acquitted_in_as_many_rounds_as_there_are_cells() -> None:
    assert found(set(), members=2) == (1, 0, set())
    assert found(set(), members=1) == (2, 0, set()), "32 rounds, each group by itself, before"


@pytest.mark.parametrize("seed", range(20))
def test_several_guilty_groups_are_found_and_nobody_else(seed: int) -> None:
    rng = random.Random(seed)
    guilty = set(rng.sample(range(GROUPS), rng.randint(2, 6)))
    rounds, _, blamed = found(guilty, members=rng.randint(1, 4), seed=seed)
    assert blamed == guilty and rounds <= 100


def test_a_group_not_begun_is_no_suspect_until_deaths_repeat() -> None:
    suspects = Suspects()
    for _ in range(DEATHS):
        assert not suspects.died({1, 2}, implicated={2})
    assert suspects.deaths == {2: DEATHS} and not suspects.suspected(1)
    for _ in range(DEATHS):
        suspects.died({1}, implicated=set())
    assert suspects.guilty(1), "it kills before it can be said to have begun"


def test_a_second_death_on_a_node_within_a_moment_implicates_no_group() -> None:
    nodes = Nodes()
    assert nodes.implicates("a", submitted=1.0, now=5.0)
    nodes.note("a", 5.0)
    assert not nodes.implicates("a", submitted=1.0, now=5.5), "it ran when the first died"
    assert nodes.implicates("a", submitted=5.2, now=5.5), "it was asked for afterwards"
    assert nodes.implicates("b", submitted=1.0, now=5.5) and nodes.implicates(None, submitted=1.0, now=5.5)
    assert nodes.implicates("a", submitted=1.0, now=5.1 + MOMENT)
    nodes.note("a", 6.0)
    assert nodes.implicates("a", submitted=1.0, now=5.1 + MOMENT), "the moment begins with the first"


def test_suspects_of_an_earlier_checkpoint_format_run_alone() -> None:
    suspects = Suspects()
    suspects.recall({"deaths": [[3, 2], [4, 2]], "alone": [[3, 1]]})
    assert suspects.cells([3, 4], most=8) == [[3], [4]]
    again = Suspects()
    suspects.died({3, 4, 5, 6})
    again.recall(json.loads(json.dumps(suspects.to_state())))
    assert again == suspects and again.cells([3, 4], most=8) == [[3, 4]]


@pytest.mark.parametrize(("fatal", "calls"), [(set(), 4), ({5}, 2 + 2 * 5)])
def test_a_block_is_halved_until_the_sample_that_kills_its_scorers_is_alone(fatal: set[int], calls: int) -> None:
    """Two members die for reasons of their own, or of one sample of 32."""
    made: list[Sequence[int]] = []

    async def ask(samples: Any, patience: str) -> int:
        made.append(samples)
        if len(made) <= 2 or fatal & {sample.number for sample in samples}:
            raise CallFailed("died")
        return len(samples)

    class Header:
        def __init__(self, number: int) -> None:
            self.number, self.uid = number, f"{number:08d}.000"

    answers, guilty = asyncio.run(isolate(ask, [Header(n) for n in range(32)], asyncio.Lock(), "scorer.teacher"))  # type: ignore[misc, list-item]
    assert list(guilty) == [f"{n:08d}.000" for n in fatal]
    assert sum(answers) == 32 - len(fatal) and len(made) <= calls


def test_a_run_outlives_engines_that_die_together_again_and_again_in_a_few_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines with 32 groups in flight, on nodes of their own, die together three times."""
    transport, struck, leased = chaos.Nodes(random.Random(1), count=1000), list[float](), list[int]()
    submit = SimulatedRollout.submit

    async def counted(self: SimulatedRollout, channel: str, requests: Any, *arguments: Any) -> None:
        leased.append(len({request.group for request in requests}))
        await submit(self, channel, requests, *arguments)

    monkeypatch.setattr(SimulatedRollout, "submit", counted)

    async def strike(run: Run) -> None:
        pool = run.pools.rollout
        assert pool is not None
        while len(struck) < 3:
            await asyncio.sleep(0.05)
            members = [m for m in pool.members.serving() if m.load >= 2]
            if len(members) == 2 and sum(m.load for m in members) == 2 * GROUPS:
                struck.append(asyncio.get_running_loop().time())
                leased.clear()
                await transport.kill([actor for m in members for actor in m.actors])

    simulation = Simulation(
        recipe(
            tmp_path,
            run={"steps": 1},
            batch={"prompts_per_step": GROUPS},
            rollout={"members": 2, "max_concurrent": 64},
        ),
        transport=transport,
        heldout=(),
        speeds=Speeds(rollout=1.0),
    )

    async def story() -> int:
        striking = asyncio.ensure_future(strike(simulation.run))
        code = await simulation.run.execute()
        striking.cancel()
        return code

    from tests.unit.own_time import in_own_time

    assert in_own_time(story()) == DONE and struck
    assert json.loads((simulation.directory / "summary.json").read_text())["skipped"] == {}
    assert len(leased) <= 6 and max(leased) > 4, "groups that were in flight are not asked for one by one"
    assert_each_once(tmp_path, 32 * 1 // 4)
