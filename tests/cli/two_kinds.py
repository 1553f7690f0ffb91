"""A driver on a Ray cluster of two kinds of nodes on this machine, whose rollouts are of two kinds; one of each dies.

`python -m tests.cli.two_kinds ROOT` writes what happened to ROOT/result.json. A process of its own, since a process has
one Ray cluster and the other tests share theirs. The GPUs are numbers: members are simulated.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.simulated.known import Speeds
from orchestrator.pools.transport import RayTransport
from orchestrator.preflight.capacity import bundles_of
from orchestrator.preflight.survey import reserve
from orchestrator.run import Run
from tests.unit.simulation import Simulation, recipe

STORE = {"object_store_memory": 100 * 2**20}
LEAST = {"cpus": 0.1, "threads": 1}
OWN = LEAST | {"gpus": 1, "labels": {"card": "!wide"}}
WIDE = {"tensor_parallel": 2, "resources": {"gpus": 2, "labels": {"card": "wide"}}}


@dataclass
class OneOfEach:
    """Kills a rollout of each kind after a step."""

    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def __call__(self, run: Run, line: Mapping[str, Any]) -> None:
        pool = run.pools.rollout
        assert pool is not None
        if line["step"] in (2, 3):
            victim = next(m for m in pool.members.serving() if m.kind == ("wide" if line["step"] == 2 else ""))
            self.tasks.append(asyncio.get_running_loop().create_task(asyncio.to_thread(ray.kill, victim.lead)))


async def _run(root: Path, names: Mapping[str, str]) -> dict[str, Any]:
    settings = recipe(
        root,
        rollout={"members": 2, "resources": OWN, "max_concurrent": 2, "kinds": {"wide": WIDE}},
        scorer={"teacher": {"members": 1, "resources": LEAST}},
        reward={"members": 1, "resources": LEAST},
        learner={"resources": LEAST},
    )
    reserved = reserve(bundles_of(settings))
    simulation = Simulation(settings, OneOfEach(), transport=RayTransport(), speeds=Speeds(rollout=0.02))
    code = await simulation.run.execute()
    pool = simulation.pools.rollout
    assert pool is not None
    async with asyncio.timeout(60):  # for the last successor
        while len(pool.members.serving()) < 3:
            await asyncio.sleep(0.1)
    members = [[m.kind, names.get(str(m.node)), m.restarts] for m in pool.members.serving()]
    await asyncio.gather(*(pool.members.stop() for pool in simulation.pools.all().values()))
    return {"code": code, "reserved": reserved is not None, "members": sorted(members)}


def main(root: Path) -> None:
    nodes = Cluster(initialize_head=True, head_node_args=STORE | {"num_cpus": 2, "include_dashboard": False})
    small = nodes.add_node(**STORE, num_cpus=1, num_gpus=2)
    wide = nodes.add_node(**STORE, num_cpus=1, num_gpus=2, labels={"card": "wide"})
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        names = {small.node_id: "small", wide.node_id: "wide"}
        (root / "result.json").write_text(json.dumps(asyncio.run(_run(root, names))))
    finally:
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
