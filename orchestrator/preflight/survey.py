"""The resources of a run's machines: of this machine for a local start, else of every node of the joined cluster.

Ray reports what its nodes offer. Whether it can place a layout is found by making and removing a placement group of
each role's bundles. A task without CPUs reports each node's free shared memory, disk and memory. A node that does not
answer is reported as unknown.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.refusal import reason
from orchestrator.placement.on_ray import make_group
from orchestrator.placement.packing import Bundle, Node, Placed, size_on_a_node
from orchestrator.preflight.gpu_memory import smallest_gpu

SEEN_WITHIN = 5.0  # seconds in which a file of another node shows up; network file systems cache folders
PATIENCE = 30.0  # seconds to wait for all nodes
RESERVED_WITHIN = 10.0  # seconds for Ray to place a layout
STORE_SHARE = 0.3  # share of the memory that Ray gives its object store


@dataclass(frozen=True)
class Free:
    """Bytes free on a machine: shared memory (None without /dev/shm), disk under the run (None if what the machine
    writes into the run's folder is not seen here), memory. `unwritten`: why it could not write there. `gpu_memory`: all
    of its smallest GPU; None if unknown."""

    shared_memory: int | None
    disk: int | None
    memory: int
    unwritten: str = ""
    gpu_memory: int | None = None


@dataclass(frozen=True)
class Machine:
    """A node, its object store in bytes, and what is free there: None if it did not answer, `silent` says why."""

    node: Node
    object_store: int
    free: Free | None
    silent: str = ""


@dataclass(frozen=True)
class Survey:
    """`disk`: bytes free under the run's directory as seen here; `held`: bytes in it now. `idle`: CPUs and GPUs that
    are not reserved now; empty if the cluster has yet to start. `most`: what an autoscaler may grow the cluster to;
    empty without one."""

    machines: tuple[Machine, ...]
    disk: int
    held: int = 0
    idle: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)


def survey_here(directory: Path, object_store: int | None) -> Survey:
    """The resources of a cluster started on this machine. `object_store` in bytes; None: Ray's default share."""
    free = free_here(str(existing_folder(directory)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = Machine(
        node=Node("this machine", os.cpu_count() or 1, _local_gpus()),
        object_store=object_store or int(STORE_SHARE * memory),
        free=free,
    )
    return Survey((machine,), free.disk or 0, _held(directory))


def survey_cluster(directory: Path) -> Survey:
    """The resources of the cluster that this process has joined."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    folder = existing_folder(directory)
    answers = _ask([node["NodeID"] for node in nodes], str(folder))
    shared = [_shown(answer, _probe(str(folder), node["NodeID"])) for node, answer in zip(nodes, answers, strict=True)]
    machines = tuple(_machine(*one) for one in zip(nodes, answers, shared, strict=True))
    idle = {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}
    return Survey(machines, shutil.disk_usage(folder).free, _held(directory), idle, _most())


def reserve(bundles: Sequence[Bundle], seconds: float = RESERVED_WITHIN) -> Placed | None:
    """Where Ray places these bundles on the joined cluster; None if it has not placed all of them within `seconds`.
    Nothing stays reserved. A role's bundles of one placement are one group, which Ray packs or spreads as the run
    would."""
    import ray
    from ray.util.placement_group import placement_group_table, remove_placement_group

    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, bundle in enumerate(bundles):
        alike[bundle.role, bundle.placement].append(i)
    groups, homes, end = [], {}, time.monotonic() + seconds
    try:
        for indices in sorted(alike.values(), key=lambda indices: size_on_a_node([bundles[i] for i in indices]))[::-1]:
            groups.append((make_group([bundles[i] for i in indices]), indices))
        for group, indices in groups:
            if not group.wait(max(0.1, end - time.monotonic())):
                return None
            nodes = placement_group_table(group)["bundles_to_node_id"]
            homes |= {i: nodes[place] for place, i in enumerate(indices)}
    finally:
        for group, _ in groups:
            remove_placement_group(group)
    names = {node["NodeID"]: _name(node) for node in ray.nodes()}
    return Placed(bundles, tuple(names[homes[i]] for i in range(len(bundles))))


def free_here(folder: str) -> Free:
    """What is free on this machine."""
    return Free(
        shared_memory=shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None,
        disk=shutil.disk_usage(folder).free if os.path.isdir(folder) else None,
        memory=_available_memory(),
        gpu_memory=smallest_gpu(),
    )


def _free_there(folder: str, probe: str) -> Free:
    """What is free on a node, which leaves a probe in the run's folder."""
    free = free_here(folder)
    try:
        Path(probe).touch()
    except OSError as error:  # no such folder, or none to write to
        return replace(free, unwritten=reason(error))
    return free


def _probe(folder: str, node: str) -> str:
    return os.path.join(folder, f".probe-{node[:16]}")


def _is_there(probe: str, seconds: float = SEEN_WITHIN) -> bool:
    """Whether a node's probe is seen here. A folder of the same name on a disk of its own shows none; one on a network
    may show it late."""
    end = time.monotonic() + seconds
    while True:
        try:
            os.unlink(probe)
            return True
        except OSError:
            if time.monotonic() >= end:
                return False
        time.sleep(0.1)


def _shown(answer: Free | str, probe: str) -> bool:
    """Whether what a node wrote is seen here. One that did not answer, or could not write, is not waited for."""
    return isinstance(answer, Free) and not answer.unwritten and _is_there(probe)


def existing_folder(directory: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    return next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())


def _ask(nodes: Sequence[str], folder: str) -> list[Free | str]:
    """Each node's answer, or the reason that there is none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def ask(node: str) -> Any:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": there, "max_retries": 0}
        return ray.remote(_free_there).options(**options).remote(folder, _probe(folder, node))

    refs = [ask(node) for node in nodes]
    answered, late = ray.wait(refs, num_returns=len(refs), timeout=PATIENCE)
    for ref in late:
        ray.cancel(ref)
    return [_answer(ref) if ref in answered else f"no answer in {PATIENCE:.0f} s" for ref in refs]


def _answer(ref: Any) -> Free | str:
    import ray

    try:
        return ray.get(ref)
    except Exception as error:  # any failure is reported as the node's answer
        return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _machine(node: Mapping[str, Any], answer: Free | str, shared: bool) -> Machine:
    offered = node["Resources"]
    found = Node(_name(node), offered.get("CPU", 0.0), offered.get("GPU", 0.0), node["Labels"], _custom(offered))
    store = int(offered.get("object_store_memory", 0))
    if isinstance(answer, str):
        return Machine(found, store, None, answer)
    memory = min(answer.memory, int(offered.get("memory", answer.memory)))  # Ray's knows a container's limit
    return Machine(found, store, replace(answer, disk=answer.disk if shared else None, memory=memory))


def _custom(offered: Mapping[str, float]) -> dict[str, float]:
    """A node's custom resources; what Ray adds itself has a colon in its name."""
    own = ("CPU", "GPU", "memory", "object_store_memory")
    return {name: amount for name, amount in offered.items() if name not in own and ":" not in name}


def _name(node: Mapping[str, Any]) -> str:
    """A machine may run several nodes."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def _most() -> dict[str, float]:
    """CPU and GPU that an autoscaler may bring the cluster to. Ray has no public call for it."""
    from ray._private.state import state

    found = state.get_max_resources_from_cluster_config() or {}
    return {name: float(found[name]) for name in ("CPU", "GPU") if name in found}


def _available_memory() -> int:
    """Bytes available without swapping, by Linux's estimate."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _held(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _local_gpus() -> int:
    """GPUs that Ray would offer: those of CUDA_VISIBLE_DEVICES, or all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1", "NoDevFiles")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
