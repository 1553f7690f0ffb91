"""A driver on a Ray cluster of several nodes on this machine, two of which vanish in mid-run: that with most of its
members but the learner, then that of the learner. What is left has room for all.

`python -m tests.cli.node_loss ROOT STEPS` writes what happened to ROOT/result.json. A process of its own, since a
process has one Ray cluster and the other tests share theirs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.simulated.known import Speeds
from orchestrator.pools.transport import RayTransport
from orchestrator.run import Run
from orchestrator.samples.prompts import Prompt
from tests.unit.simulation import TRAIN, Simulation, recipe

WORKERS = 3
AFTER = {3: "others", 5: "learner"}  # which node goes after a step
NODE = {"num_cpus": 8, "object_store_memory": 100 * 2**20}
HEAD = NODE | {"num_cpus": 0, "include_dashboard": False}
ONE_CPU = {"resources": {"cpus": 1, "threads": 1}}
LONG = [Prompt(p.row, {name: ids * 10_000 for name, ids in p.ids.items()}, None) for p in TRAIN]  # 40 KB and more a row


@dataclass
class NodeLoss:
    """Takes nodes away after steps, each once. `lost` are the roles of the members that went with each."""

    nodes: Cluster
    lost: dict[str, list[str]] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __call__(self, run: Run, line: Mapping[str, Any]) -> None:
        which = AFTER.get(line["step"])
        if which and which not in self.lost:
            self.lost[which] = []
            self.tasks.append(asyncio.get_running_loop().create_task(self._take(run, which)))

    async def _take(self, run: Run, which: str) -> None:
        places: dict[str, list[str]] = {}
        for role, pool in run.pools.all().items():
            for actor in (actor for member in pool.members.serving() for actor in member.actors):
                with suppress(ray.exceptions.RayActorError):  # it went with the first node, and nobody has noticed yet
                    places.setdefault(await _node_of(actor), []).append(role)
        fitting = {node: roles for node, roles in places.items() if ("learner" in roles) == (which == "learner")}
        node = max(fitting, key=lambda node: len(fitting[node]))
        self.lost[which] = fitting[node]
        worker = next(worker for worker in self.nodes.worker_nodes if worker.node_id == node)
        await asyncio.to_thread(self.nodes.remove_node, worker, allow_graceful=False)


async def _node_of(actor: Any) -> str:
    return await actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())


async def _run(root: Path, steps: int, nodes: Cluster) -> dict[str, Any]:
    settings = recipe(
        root,
        run={"steps": steps},
        rollout=ONE_CPU,
        scorer={"teacher": ONE_CPU | {"members": 2}},
        reward=ONE_CPU | {"members": 1},
        learner=ONE_CPU | {"ranks": 2},
        stream={"coalesce_samples": 64},
        max_staleness=1,
        on_stale="wait",
    )
    loss = NodeLoss(nodes)
    simulation = Simulation(
        settings, loss, train=LONG, heldout=(), transport=RayTransport(), speeds=Speeds(rollout=0.05, score=0.01)
    )
    code = await simulation.run.execute()
    await asyncio.gather(*loss.tasks)
    await asyncio.gather(*(pool.members.stop() for pool in simulation.pools.all().values()))
    return {"code": code, "lost": loss.lost, "notices": simulation.notices}


def main(root: Path, steps: int) -> None:
    nodes = Cluster(initialize_head=True, head_node_args=HEAD)
    for _ in range(WORKERS):
        nodes.add_node(**NODE)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        (root / "result.json").write_text(json.dumps(asyncio.run(_run(root, steps, nodes))))
    finally:
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
