"""Placement groups: what a role's `placement` asks of Ray.

Ray packs or spreads the bundles of one group. Each member has a group of its own, so that it comes and goes alone;
members of a role are spread over nodes here, by naming a node to Ray.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from configs.roles.sizes import Spreading
from orchestrator.placement.packing import matches

NODE = "ray.io/node-id"  # Ray's own label
SMALLEST = 0.001  # CPUs of a bundle that needs nothing: Ray refuses empty ones
TARGET_SECONDS = 3.0  # for a bundle to be placed on the node that was chosen for it
POLL_SECONDS = 0.05  # between looks at a group that has no place yet
GATHER_SECONDS = 0.05  # members that are asked for within this time are placed hardest first


class NoPlace(Exception):
    """The cluster has no place for a member now."""


@dataclass(frozen=True)
class Place:
    """The placement group of a member, the node of its lead, and its role."""

    group: Any
    node: str
    role: str


class Wanted(Protocol):
    """What an actor reserves: Resources of a recipe, or a Bundle."""

    @property
    def cpus(self) -> float: ...
    @property
    def gpus(self) -> float: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def custom(self) -> Mapping[str, float]: ...
    @property
    def placement(self) -> Spreading: ...


def amounts(wanted: Wanted) -> dict[str, float]:
    """What one actor reserves, in Ray's names."""
    asked = {"CPU": wanted.cpus, "GPU": wanted.gpus, **wanted.custom}
    return {name: amount for name, amount in asked.items() if amount} or {"CPU": SMALLEST}


def make_group(bundles: Sequence[Wanted], node: str | None = None) -> Any:
    """Ask Ray for a placement group of bundles with one `placement`. `node`: a selector of the node's id."""
    from ray.util.placement_group import placement_group

    labels = [{**wanted.labels, NODE: node} if node else dict(wanted.labels) for wanted in bundles]
    selectors: Any = labels if any(labels) else None  # Ray declares no None
    strategy = bundles[0].placement.upper()
    return placement_group([amounts(w) for w in bundles], strategy=strategy, bundle_label_selector=selectors)


def nodes_now() -> list[dict[str, Any]]:
    """The nodes that live, with what is free on each. Ray has no public call for the latter."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [node | {"Free": free.get(node["NodeID"], {})} for node in ray.nodes() if node["Alive"]]


class Places:
    """Finds a place for one member at a time, and knows which member has which."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: to wait for a place."""
        self._seconds = seconds
        self._spread = Spread()
        self._asking = HardestFirst()

    async def take(self, role: str, count: int, wanted: Wanted) -> Place:
        """A place for a member of `count` actors. Raises NoPlace."""
        spreads = count == 1 and wanted.placement in ("spread", "strict_spread") and NODE not in wanted.labels
        async with self._asking.held(count, wanted):
            if spreads:
                nodes = await asyncio.to_thread(nodes_now)
                if target := self._spread.choose(role, wanted, nodes):
                    with suppress(NoPlace):  # then any other place
                        return await self._wait(make_group([wanted], target), role, 1, wanted, TARGET_SECONDS)
            strict = spreads and wanted.placement == "strict_spread"
            group = make_group([wanted] * count, self._spread.elsewhere(role) if strict else None)
        return await self._wait(group, role, count, wanted, self._seconds)

    def give_back(self, place: Place) -> None:
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(place.group)
        self._spread.went(place.role, place.node)

    async def _wait(self, group: Any, role: str, count: int, wanted: Wanted, seconds: float) -> Place:
        """Wait for a group, and count its member. Raises NoPlace, and removes the group."""
        from ray.util.placement_group import remove_placement_group

        try:
            node = (await asyncio.wait_for(_placed(group), seconds))["bundles_to_node_id"][0]
            if count == 1 and wanted.placement == "strict_spread" and self._spread.has(role, node):
                raise TimeoutError  # two waited, and one new node came
        except BaseException as error:  # an unused placement group would keep others waiting
            remove_placement_group(group)
            if isinstance(error, TimeoutError):
                what = f"{count} x {amounts(wanted)}{_described(wanted)}"
                raise NoPlace(
                    f"{role}: no place for {what} in {seconds:.0f} s; see `ray status` for what is free"
                ) from None
            raise
        self._spread.came(role, node)
        return Place(group, node, role)


async def _placed(group: Any) -> Mapping[str, Any]:
    """Ray's entry of a group, once every bundle has its place. The group's own `ready` runs a task there, for which a
    worker must start: a second or two before each member's own."""
    from ray.util.placement_group import placement_group_table

    while (found := await asyncio.to_thread(placement_group_table, group)).get("state") != "CREATED":
        await asyncio.sleep(POLL_SECONDS)
    return found


class Spread:
    """Counts the members of each role on each node, and chooses nodes for those that spread."""

    def __init__(self) -> None:
        self._members: dict[str, Counter[str]] = defaultdict(Counter)

    def choose(self, role: str, wanted: Wanted, nodes: Sequence[Mapping[str, Any]]) -> str | None:
        """The id of a node with enough free now, of those with the fewest members of the role; None if there is none.
        `nodes` as of `nodes_now`."""
        asked, there = amounts(wanted), self._members[role]
        fitting = [
            node["NodeID"]
            for node in nodes
            if matches(node["Labels"], wanted.labels)
            and all(node["Free"].get(name, 0.0) + 1e-6 >= amount for name, amount in asked.items())
        ]
        best = min(fitting, key=lambda node: there[node], default=None)
        return None if best is None or (wanted.placement == "strict_spread" and there[best]) else best

    def elsewhere(self, role: str) -> str | None:
        """A selector of the nodes without a member of the role; None if no node has one."""
        taken = [node for node, count in self._members[role].items() if count]
        return f"!in({','.join(taken)})" if taken else None

    def has(self, role: str, node: str) -> bool:
        return self._members[role][node] > 0

    def came(self, role: str, node: str) -> None:
        self._members[role][node] += 1

    def went(self, role: str, node: str) -> None:
        self._members[role][node] -= 1


class HardestFirst:
    """A lock. Those who come within GATHER_SECONDS get it hardest first: what wants most of one node, so that smaller
    bundles do not take its place."""

    def __init__(self) -> None:
        self._waiting: list[tuple[tuple[float, ...], int, asyncio.Future[None]]] = []
        self._came = 0
        self._busy = False

    @asynccontextmanager
    async def held(self, count: int, wanted: Wanted) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        mine: asyncio.Future[None] = loop.create_future()
        self._came += 1
        heapq.heappush(self._waiting, (_ease(count, wanted), self._came, mine))
        if not self._busy:
            self._busy = True
            loop.call_later(GATHER_SECONDS, self._next)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it came with the cancellation
                self._next()
            raise
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        while self._waiting:
            *_, waiting = heapq.heappop(self._waiting)
            if not waiting.done():
                waiting.set_result(None)
                return
        self._busy = False


def _ease(count: int, wanted: Wanted) -> tuple[float, ...]:
    """Ascending from members that want most of one node."""
    together = count if wanted.placement in ("pack", "strict_pack") else 1
    return (-together * wanted.gpus, -together * wanted.cpus)


def _described(wanted: Wanted) -> str:
    """What else a place must have, for a message."""
    labels = f" with {dict(wanted.labels)}" if wanted.labels else ""
    return labels + ("" if wanted.placement == "pack" else f" ({wanted.placement})")
