"""Learner ranks that die or raise inside a collective, at work: the run goes on, from the newest checkpoint."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.engines.ranks import Ranks, Strikes
from tests.processes import alive

pytestmark = pytest.mark.acceptance
GONE = "[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2345"


@pytest.fixture(scope="module")
def ranks(
    ray_cluster: None,
    models: dict[str, Path],
    prompts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    runner: asyncio.Runner,
) -> Ranks:
    return Ranks(models, prompts, tmp_path_factory.mktemp("ranks"), runner)


def orders(rng: random.Random, method: str, count: int) -> list[dict[str, Any]]:
    """Either rank, at any of its collectives, before or after it has begun."""
    return [{"method": method, "rank": i % 2, "at": rng.random(), "begun": rng.random() < 0.5} for i in range(count)]


def survive(ranks: Ranks, given: list[dict[str, Any]]) -> None:
    """A run with a strike after each step that is new; steps, samples and versions are those of any run."""
    steps, watcher = len(given) + 2, Strikes(folder=ranks.orders, orders=list(given))
    done = ranks.run(ranks.recipe(run={"steps": steps}), watcher)
    assert done.code == 0 and not watcher.orders
    assert done.summary["learner_rebuilds"] == len(given)
    assert [line["step"] for line in done.lines] == list(range(1, steps + 1))
    versions = [line["policy_version"] for line in done.lines]
    assert versions == sorted(set(versions))
    uids = [row["uid"] for step in range(1, steps + 1) for row in done.samples(f"step_{step:06d}")]
    assert sorted(uids) == [f"{group:08d}.000" for group in range(4 * steps)], "each sample once"
    assert not alive(watcher.pids), "no survivor is left behind"


@pytest.mark.timeout(280)
def test_a_rank_that_dies_inside_a_collective_of_a_step_is_the_learners_death(ranks: Ranks) -> None:
    survive(ranks, [{"method": "step", "rank": 1, "at": 0.6, "begun": False}])


@pytest.mark.system
@pytest.mark.timeout(600)
def test_ranks_that_die_at_a_publish_and_a_save_and_one_that_raises_what_gloo_does(ranks: Ranks) -> None:
    given: list[dict[str, Any]] = [
        {"method": "publish", "rank": 1, "at": 0.5, "begun": False},
        {"method": "save", "rank": 0, "at": 0.5, "begun": True},
        {"method": "step", "rank": 0, "at": 0.3, "begun": False, "raises": GONE},
    ]
    survive(ranks, given)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", ["step", "publish", "save"])
def test_twenty_kills_inside_collectives_at_random(ranks: Ranks, method: str, record_property: Any) -> None:
    survive(ranks, orders(random.Random(method), method, 20))
    record_property("kills", 20)
