"""A driver on a Ray cluster of two nodes on this machine, of which one has a label and a custom resource.

`python -m tests.cli.placed FILE` writes where members came to lie. A process of its own, since a process has one Ray
cluster and the other tests share theirs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from configs.roles.sizes import Resources
from orchestrator.placement.on_ray import NoPlace
from orchestrator.placement.packing import Bundle
from orchestrator.pools.transport import GangSpec, RayTransport
from orchestrator.preflight.survey import reserve, survey_cluster

CPUS = 3
HEAD = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20}
NODE = {"num_cpus": CPUS, "object_store_memory": 100 * 2**20}


class Actor:
    def where(self) -> str:
        return ray.get_runtime_context().get_node_id()


class Members:
    """Spawns members and says on which nodes they are. `names`: nodes' names, by id."""

    def __init__(self, names: dict[str, str]) -> None:
        self._transport = RayTransport(placement_timeout=4.0)
        self._names = names
        self._alive: list[Sequence[Any]] = []

    async def spawn(self, role: str, ranks: int = 1, **resources: Any) -> str:
        """The node of each actor, one letter each; empty if there is no place."""
        try:
            spec = GangSpec(role, Actor, ((),) * ranks, Resources.model_validate({"cpus": 1} | resources))
            actors = await self._transport.spawn(spec)
        except NoPlace:
            return ""
        self._alive.append(actors)
        calls = [self._transport.call(actor, "where")[0] for actor in actors]
        return "".join([self._names[await self._transport.value(call)] for call in calls])

    async def end(self) -> None:
        while self._alive:
            await self._transport.kill(self._alive.pop())
        while ray.available_resources().get("CPU", 0) < 2 * CPUS:
            await asyncio.sleep(0.05)


async def _placed(members: Members) -> dict[str, Any]:
    """Members that take turns on the same two nodes."""
    found: dict[str, Any] = {}
    rollouts = [members.spawn("rollout", placement="spread") for _ in range(CPUS)]
    *spread, found["learner"] = await asyncio.gather(
        *rollouts, members.spawn("learner", ranks=CPUS, placement="strict_pack")
    )
    found["beside it"] = "".join(spread)
    await members.end()
    found["apart"] = [await members.spawn("scorer.t", placement="strict_spread") for _ in range(3)]
    found["spread"] = [await members.spawn("rollout", placement="spread") for _ in range(2)]
    await members.end()
    found["labelled"] = [await members.spawn("reward", labels={"disk": "fast"}, placement="spread") for _ in range(2)]
    found["elsewhere"] = await members.spawn("reward", labels={"disk": "!fast"})
    found["licensed"] = [await members.spawn("rollout", cpus=0, custom={"licence": 1}) for _ in range(2)]
    await members.end()
    return found


def _reserved(names: dict[str, str]) -> dict[str, str]:
    """What preflight finds: the node of each bundle, by role."""
    bundles = [Bundle("rollout", 1, placement="spread", member=i) for i in range(2)]
    bundles += [Bundle("learner", 1, placement="strict_pack", member=0) for _ in range(2)]
    bundles.append(Bundle("reward", 0, custom={"licence": 1.0}, labels={"disk": "fast"}))
    placed = reserve(bundles)
    assert placed is not None
    letter = {machine.node.name: names[_id_of(machine.node.name)] for machine in survey_cluster(Path()).machines}
    homes = zip(placed.bundles, placed.homes, strict=True)
    roles = ("rollout", "learner", "reward")
    by_role = [(bundle.role, letter[str(home)]) for bundle, home in homes]
    return {role: "".join(where for of, where in by_role if of == role) for role in roles}


def _id_of(name: str) -> str:
    return next(node["NodeID"] for node in ray.nodes() if node["NodeID"].startswith(name.split("(")[1][:8]))


def main(file: Path) -> None:
    nodes = Cluster(initialize_head=True, head_node_args=HEAD)
    fast = nodes.add_node(**NODE, labels={"disk": "fast"}, resources={"licence": 1})
    plain = nodes.add_node(**NODE)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        names = {node.node_id: name for node, name in ((nodes.head_node, "h"), (fast, "a"), (plain, "b"))}
        found = asyncio.run(_placed(Members(names))) | {"reserved": _reserved(names)}
        states = [group["state"] for group in placement_group_table().values()]
        file.write_text(json.dumps(found | {"left": sum(state != "REMOVED" for state in states)}))
    finally:
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
