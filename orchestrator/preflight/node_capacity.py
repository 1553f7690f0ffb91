"""Compares each node with what it would hold once every bundle has its place.

Object store, shared memory, memory and the run's folder. A node that does not answer is named; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from configs.roles.sizes import role_of
from configs.schema import Recipe
from orchestrator.placement.packing import Placed
from orchestrator.preflight import estimates
from orchestrator.preflight.comparison import MIB, Comparison, compared, counted, notable, size
from orchestrator.preflight.estimates import Planned, Size
from orchestrator.preflight.survey import Machine


def compare_nodes(
    recipe: Recipe, plan: Planned, sizes: Mapping[str, Size], machines: Sequence[Machine], placed: Placed
) -> list[Comparison]:
    """Compare every node that has a bundle. Of each resource: the nodes that are short, else the fullest."""
    used = [machine for machine in machines if machine.node.name in placed.homes]
    stored = [(stored_bytes(recipe, plan, placed, machine.node.name), machine) for machine in used]
    return [
        *notable(_object_store(plan, need, m) for need, m in stored),
        *notable(found for need, m in stored for found in _shared_memory(recipe, plan, need, m, placed)),
        *notable(found for m in used for found in _memory(recipe, sizes, m, placed)),
        *(found for machine in used for found in _folder(recipe, machine)),
        *_one_node(recipe, placed),
    ]


def stored_bytes(recipe: Recipe, plan: Planned, placed: Placed, node: str) -> int:
    """Upper bound of bytes in a node's object store. All versions lie on the node of rank 0, copies where members pull
    them; payloads lie where they are made, and a learner's node may hold a copy of each."""
    writers = sum(placed.share(node, role) for role in ("rollout", "teacher_rollout", "dataset"))
    served = {model: placed.share(node, f"scorer.{model}") for model in plan.scores}
    moving = (*recipe.scored_with("live"), *recipe.scored_with("ema"))
    pulled = (writers > 0) + sum(served[model] > 0 for model in moving)
    weights = plan.versions if node == placed.first("learner") else min(plan.versions, pulled * plan.version)
    if placed.on(node)["learner"]:
        return weights + plan.payloads
    made = sum(share * (plan.scores[m] + plan.projections.get(m, 0)) for m, share in served.items())
    return weights + ceil(made + plan.samples * min(1.0, writers))


def _object_store(plan: Planned, need: int, machine: Machine) -> Comparison:
    asked = (
        f"a weight version takes {size(plan.version)} and {plan.alive} live at a time, payloads take at most "
        f"{size(plan.payloads)}: {size(need)} on {machine.node.name}"
    )
    remedy = (
        f"raise cluster.object_store_mib to {ceil(need / MIB) + 64} (of a cluster that is joined: ray start "
        "--object-store-memory), or lower max_staleness, batch.prompts_per_step or sampling.max_response_tokens"
    )
    there = f"its object store has {size(machine.object_store)}"
    return compared("cluster.object_store_mib", asked, need, there, machine.object_store, remedy)


def _shared_memory(
    recipe: Recipe, plan: Planned, stored: int, machine: Machine, placed: Placed
) -> Iterator[Comparison]:
    """One weight file for each vLLM rollout member, and the object store, which lies in shared memory too."""
    by_file = recipe.rollout.engine == "vllm" and not recipe.rollout.direct
    here = {name: count for name, count in placed.on(machine.node.name).items() if role_of(name) == "rollout"}
    files = sum(here.values()) if by_file else 0
    if not files or machine.free is None or machine.free.shared_memory is None:
        return
    need, free = stored + files * plan.file, machine.free.shared_memory
    asked = (
        f"{counted(files, 'weight file')} of {size(plan.file)} and {size(stored)} in the object store take "
        f"{size(need)} of /dev/shm on {machine.node.name}"
    )
    key = f"{max(here, key=lambda name: here[name])}.members"
    remedy = f"enlarge /dev/shm or lower {key}"
    yield compared(key, asked, need, f"{size(free)} are free", free, remedy)


def _memory(recipe: Recipe, sizes: Mapping[str, Size], machine: Machine, placed: Placed) -> Iterator[Comparison]:
    here = placed.on(machine.node.name)
    parts = {role: count * estimates.memory_bytes(recipe, sizes, role) for role, count in here.items()}
    if not any(parts.values()) or machine.free is None:
        return
    need, free, largest = sum(parts.values()), machine.free.memory, max(parts, key=lambda role: parts[role])
    each = ", ".join(f"{role} {size(amount)}" for role, amount in parts.items() if amount)
    asked = f"weights, optimizer and caches on {machine.node.name} take at least {size(need)} of memory ({each})"
    lower = f"lower {largest}.members or {largest}.kv_cache_gib"
    remedy = f"{'raise learner.zero_stage' if largest == 'learner' else lower}, add nodes, or use a smaller model"
    yield compared(largest, asked, need, f"{size(free)} are free", free, remedy)


def _one_node(recipe: Recipe, placed: Placed) -> Iterator[Comparison]:
    """Members that read the copy on the learner's GPU must be on its node."""
    if recipe.rollout.carrier != "ipc":
        return
    nodes = sorted({home for bundle, home in placed.pairs if bundle.role in ("rollout", "learner")})
    there = f"rollout and learner are placed on {counted(len(nodes), 'node')} ({', '.join(nodes)})"
    remedy = "give both roles one node by resources.labels, start fewer rollouts, or use nccl"
    yield Comparison("fits" if len(nodes) == 1 else "short", "rollout.carrier", "'ipc' needs one node", there, remedy)


def _folder(recipe: Recipe, machine: Machine) -> Iterator[Comparison]:
    name = machine.node.name
    if machine.free is None:
        remedy = "its shared memory, disk and memory are not checked; see whether actors start there"
        there = f"it did not say what is free: {machine.silent}"
        yield Comparison("tight", "cluster.address", f"node {name} has a part in the run", there, remedy)
    elif machine.free.disk is None:
        unseen = f"what node {name} writes there is not seen here"
        there = f"node {name} cannot write there ({why})" if (why := machine.free.unwritten) else unseen
        remedy = "put it on storage that every node sees"
        yield Comparison("short", "run.root", recipe.run.root, there, remedy)
