"""Learner ranks that die or raise inside a collective, at work: the run goes on, from the newest checkpoint."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from orchestrator.pools.sick import OUT_OF_MEMORY, remedy
from orchestrator.surface.outcome import first_of
from tests.engines.ranks import Order, Ranks, Strikes, places, struck
from tests.processes import alive

METHODS = ("step", "publish", "save")
KILLS = 20  # in each of them
GLOO = "[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2345"
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:2010, unhandled system error"
SHORT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"
ODD = "words of no fault that anybody knows"


def at_random(rng: random.Random, method: str, count: int) -> list[Order]:
    """Either rank, at any of its collectives, before or after it has begun."""
    return [Order(method, i % 2, rng.random(), rng.random() < 0.5) for i in range(count)]


def survive(ranks: Ranks, orders: Sequence[Order]) -> tuple[Strikes, list[dict[str, Any]]]:
    """A run with a strike after each step that is new; steps, samples and versions are those of any run. Returns what
    was seen, and where ranks were struck."""
    steps, earlier = len(orders) + 3, len(struck(ranks.orders))
    watcher = Strikes(folder=ranks.orders, orders=list(orders))
    done = ranks.run(ranks.recipe(run={"steps": steps}), watcher)
    assert done.code == 0 and not watcher.orders
    assert done.summary["learner_rebuilds"] == len(orders)
    assert [line["step"] for line in done.lines] == list(range(1, steps + 1))
    versions = [line["policy_version"] for line in done.lines]
    assert versions == sorted(set(versions))
    uids = [row["uid"] for step in range(1, steps + 1) for row in done.samples(f"step_{step:06d}")]
    assert sorted(uids) == [f"{group:08d}.000" for group in range(4 * steps)], "each sample once"
    assert not alive(watcher.pids), "no survivor is left behind"
    assert len(watcher.rebuilds) == len(orders)
    for order, said in zip(orders, watcher.rebuilds, strict=True):
        assert f"died in {order.method}" in said
        assert (order.raises if order.raises else "actor died") in said, "a death is told as one, whoever spoke first"
    return watcher, struck(ranks.orders)[earlier:]


@pytest.mark.timeout(600)
def test_a_rank_that_dies_inside_a_collective_is_the_learners_death(ranks: Ranks) -> None:
    """In two of them the survivor raises before, in words that tell nobody of a death: they wait for the other's."""
    odd = [Order("step", 1, 0.6, survivor=ODD), Order("publish", 1, 0.5, survivor=ODD)]
    survive(ranks, [*odd, Order("save", 0, 0.5, begun=True)])


@pytest.mark.acceptance
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", METHODS)
def test_twenty_kills_inside_collectives_at_random(
    ranks: Ranks, method: str, record_property: Callable[[str, object], None]
) -> None:
    _, strikes = survive(ranks, at_random(random.Random(method), method, KILLS))
    assert len(strikes) == KILLS
    record_property("kills", len(strikes))
    record_property("at", places(strikes))


@pytest.mark.acceptance
@pytest.mark.timeout(600)
@pytest.mark.parametrize("words", [GLOO, NCCL, SHORT], ids=["gloo", "nccl", "memory"])
def test_a_rank_that_raises_a_fault_of_its_device_is_built_anew(ranks: Ranks, words: str) -> None:
    survive(ranks, [Order("step", 0, 0.3, raises=words)])


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_a_learner_that_runs_out_of_memory_in_the_same_step_again_and_again_ends_the_run(ranks: Ranks) -> None:
    watcher = Strikes(folder=ranks.orders, orders=[Order("step", 0, 0.3, raises=SHORT, times=OUT_OF_MEMORY)])
    with pytest.raises(BaseException) as failure:
        ranks.run(ranks.recipe(), watcher)
    line = str(first_of(failure.value)).splitlines()[0]
    assert "learner" in line and "out of memory" in line and remedy("learner") in line
    assert len(watcher.rebuilds) == OUT_OF_MEMORY - 1
