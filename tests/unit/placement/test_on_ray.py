"""What Ray is asked for, without Ray: which node a member that spreads is sent to, and who asks first."""

from __future__ import annotations

import asyncio
from typing import Any

from configs.roles.sizes import Resources
from orchestrator.placement.on_ray import SMALLEST, HardestFirst, Spread, amounts


def node(name: str, labels: dict[str, str] | None = None, **free: float) -> dict[str, Any]:
    return {"NodeID": name, "Labels": labels or {}, "Free": free}


def test_an_actor_reserves_its_cpus_gpus_and_custom_resources() -> None:
    assert amounts(Resources(cpus=2, gpus=1, custom={"nvme": 0.5})) == {"CPU": 2, "GPU": 1, "nvme": 0.5}
    assert amounts(Resources(cpus=0)) == {"CPU": SMALLEST}, "Ray refuses an empty bundle"


def test_a_member_goes_to_a_node_with_enough_free_and_the_fewest_of_its_role() -> None:
    spread, wanted = Spread(), Resources(cpus=1, placement="spread")
    nodes = [node("a", CPU=4), node("b", CPU=4), node("full", CPU=0.5)]
    chosen = []
    for _ in range(4):
        chosen.append(spread.choose("rollout", wanted, nodes))
        spread.came("rollout", chosen[-1])
    assert chosen == ["a", "b", "a", "b"]
    assert spread.choose("scorer.t", wanted, nodes) == "a", "roles are counted apart"
    spread.went("rollout", "b")
    assert spread.choose("rollout", wanted, nodes) == "b"
    assert spread.choose("rollout", Resources(cpus=8, placement="spread"), nodes) is None


def test_labels_and_custom_resources_narrow_the_choice() -> None:
    nodes = [node("a", CPU=4), node("b", {"disk": "fast"}, CPU=4), node("c", {"disk": "fast"}, CPU=4, nvme=1)]
    labelled = Resources(cpus=1, labels={"disk": "fast"}, placement="spread")
    assert Spread().choose("rollout", labelled, nodes) == "b"
    assert Spread().choose("rollout", labelled.model_copy(update={"custom": {"nvme": 1.0}}), nodes) == "c"


def test_strict_spread_never_doubles_up() -> None:
    spread, wanted = Spread(), Resources(cpus=1, placement="strict_spread")
    spread.came("scorer.t", "a")
    assert spread.choose("scorer.t", wanted, [node("a", CPU=4)]) is None
    assert spread.elsewhere("scorer.t") == "!in(a)" and spread.elsewhere("rollout") is None
    spread.went("scorer.t", "a")
    assert spread.elsewhere("scorer.t") is None


async def _order(*members: tuple[str, int, Resources], gone: str = "") -> list[str]:
    lock, order = HardestFirst(), []

    async def ask(name: str, count: int, resources: Resources) -> None:
        async with lock.held(count, resources):
            order.append(f"{name} in")
            await asyncio.sleep(0.001)
            order.append(f"{name} out")

    tasks = {name: asyncio.create_task(ask(name, count, resources)) for name, count, resources in members}
    await asyncio.sleep(0)
    if gone:
        tasks[gone].cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    return order


MEMBERS = (
    ("rollout", 1, Resources(gpus=1, placement="spread")),
    ("scorer", 1, Resources(gpus=4)),
    ("reward", 1, Resources(cpus=1)),
    ("learner", 8, Resources(gpus=1, placement="strict_pack")),
)


def test_who_wants_most_of_one_node_asks_first() -> None:
    order = asyncio.run(_order(*MEMBERS))
    assert order == [f"{name} {way}" for name in ("learner", "scorer", "rollout", "reward") for way in ("in", "out")]


def test_a_member_that_is_called_off_holds_nobody_up() -> None:
    assert [entry.split()[0] for entry in asyncio.run(_order(*MEMBERS, gone="learner"))[::2]] == [
        "scorer",
        "rollout",
        "reward",
    ]


def test_a_member_that_is_called_off_as_its_time_comes_holds_nobody_up() -> None:
    async def order() -> list[str]:
        lock, wanted, came = HardestFirst(), Resources(), []

        async def ask(name: str) -> None:
            async with lock.held(1, wanted):
                came.append(name)

        async with lock.held(1, wanted):
            late, last = (asyncio.create_task(ask(name)) for name in ("late", "last"))
            await asyncio.sleep(0)
        late.cancel()  # the lock has just been handed on to it
        await asyncio.wait_for(last, 1)
        return came

    assert asyncio.run(order()) == ["last"]
