"""Can these machines hold this run? A line for each comparison, before any actor starts.

First whether every bundle has a place: a live cluster places them in a placement group, other machines are packed by
placement.py. If so, what lies on each node (node_capacity.py). Then what depends on no placement: the disk under the
run, and the KV caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from actors.models.model_files import hidden_width, key_values_per_token, layer_numbers, parameters
from configs.load import model_directory
from configs.node import STUDENT
from configs.places import places
from configs.roles.rollout import Rollout
from configs.roles.scorer import Scorer
from configs.roles.sizes import role_of
from configs.schema import Recipe
from orchestrator.placement.packing import Bundle, Node, Placed, place
from orchestrator.pools.layout import Demand, demands
from orchestrator.preflight import estimates
from orchestrator.preflight.adapters import adapted
from orchestrator.preflight.budgets.fitted import fitted_to
from orchestrator.preflight.comparison import GIB, Comparison, counted, size
from orchestrator.preflight.estimates import Extent, Size
from orchestrator.preflight.files import Inputs
from orchestrator.preflight.inputs.servers import served_elsewhere
from orchestrator.preflight.node_capacity import compare_nodes
from orchestrator.preflight.survey import Survey, reserve

KEYS = {"CPU": "cpus", "GPU": "gpus"}  # of resources in a recipe, by Ray's names


def read_sizes(recipe: Recipe) -> dict[str, Size]:
    """Sizes of the student and of every served model, from file headers; of a model with swaps, the largest."""
    folders: dict[str, list[Path]] = {}
    for model, swap in places(recipe):
        folders.setdefault(model, []).append(model_directory(recipe.path_of(model, swap)))
    largest = {name: max(found, key=parameters) for name, found in folders.items()}
    sizes = {name: _size(recipe, name, folder) for name, folder in largest.items()}
    return sizes | {STUDENT: adapted(recipe, sizes[STUDENT], largest[STUDENT])}


def _size(recipe: Recipe, model: str, folder: Path) -> Size:
    if served_elsewhere(recipe, model):
        return Size(0, 0, None)
    layers, layer = layer_numbers(folder) or (None, None)
    return Size(parameters(folder), hidden_width(folder), key_values_per_token(folder), layers=layers, layer=layer)


def compared_with_machines(recipe: Recipe, inputs: Inputs, directory: Path) -> list[Comparison]:
    """Compare the run with the machines that it would use. A cluster to join must be joined already."""
    from orchestrator.preflight import cluster

    return compared_with(recipe, inputs, cluster.survey(recipe, directory))


def compared_with(recipe: Recipe, inputs: Inputs, survey: Survey) -> list[Comparison]:
    """Compare the run with machines whose survey was taken."""
    from orchestrator.preflight import cluster

    placed = _reserved(recipe, survey) if cluster.joins_cluster(recipe) else packed(recipe, survey)
    return compare(recipe, inputs.extent, read_sizes(recipe), survey, placed)


def _reserved(recipe: Recipe, survey: Survey) -> Placed | None:
    """Where Ray places the bundles. None if they exceed its nodes: asking would make an autoscaler add some."""
    wanted, nodes = demands(recipe), [machine.node for machine in survey.machines]
    short = any(sum(d.of(kind) for d in wanted) > sum(n.of(kind) for n in nodes) for kind in _kinds_of(wanted))
    return None if short else reserve(bundles_of(recipe))


def packed(recipe: Recipe, survey: Survey) -> Placed:
    """Where a layout would lie on machines without a running cluster."""
    return place(bundles_of(recipe), [machine.node for machine in survey.machines])


def compare(
    recipe: Recipe, extent: Extent, sizes: Mapping[str, Size], survey: Survey, placed: Placed | None
) -> list[Comparison]:
    """All comparisons, also those that fit, with the numbers that `auto` becomes on these machines. `placed`: where the
    bundles lie; None if the cluster has not placed them all."""
    recipe, _ = fitted_to(recipe, extent, sizes, survey.machines)
    wanted, nodes = demands(recipe), [machine.node for machine in survey.machines]
    found = [one for name in _kinds_of(wanted) if (one := _total(wanted, name, nodes, survey))]
    if placed is None:
        found = _unplaced(found, packed(recipe, survey), nodes)
    elif all(one.grade != "short" for one in found):
        found.append(_places(placed, nodes))
        if not placed.homeless:
            version = extent.version_bytes if recipe.learner.engine == "deepspeed" else 0
            plan = estimates.planned(recipe, sizes, version, extent.longest_prompt, extent.heldout, extent.vocabulary)
            found += compare_nodes(recipe, plan, sizes, survey.machines, placed)
    if recipe.learner.engine == "deepspeed":
        samples = estimates.recorded_bytes(recipe, extent.longest_prompt, extent.heldout)
        found.append(_disk(recipe, sizes[STUDENT], samples, survey.disk + survey.held))
    return found + _caches(recipe, sizes, {demand.name for demand in wanted})


def bundles_of(recipe: Recipe, at_most: bool = False) -> list[Bundle]:
    """One bundle for each actor of each member. `at_most`: with as many members as `autoscale` may give."""

    def members(demand: Demand) -> int:
        bounds = recipe.autoscale.get(demand.role) if at_most and not demand.kind else None
        return bounds.max if bounds else demand.members

    return [
        Bundle(demand.role, taken.cpus, taken.gpus, taken.labels, taken.custom, taken.placement, member, demand.kind)
        for demand in demands(recipe)
        for taken in (demand.resources,)
        for member in range(members(demand))
        for _ in range(demand.actors)
    ]


def _kinds_of(wanted: Sequence[Demand]) -> list[str]:
    """Ray's names of the resources that a layout takes."""
    return ["CPU", "GPU", *sorted({name for demand in wanted for name in demand.resources.custom})]


def _unplaced(totals: Sequence[Comparison], packed: Placed, nodes: Sequence[Node]) -> list[Comparison]:
    """The reason that Ray has not placed a layout: too little in total, nodes too small, or resources in use."""
    if any(one.grade == "short" for one in totals):
        return [*totals]
    if all(one.grade == "fits" for one in totals) and packed.homeless:
        return [*totals, _places(packed, nodes)]
    asked, there = f"the layout takes {counted(len(packed.bundles), 'bundle')}", "Ray has not placed them all yet"
    return [*totals, Comparison("tight", "resources", asked, there, "the run waits for a place (see `ray status`)")]


def _total(wanted: Sequence[Demand], name: str, nodes: Sequence[Node], survey: Survey) -> Comparison | None:
    """A resource of the whole layout. What is in use now, or may be added by an autoscaler, makes it tight: the run
    waits for it."""
    amounts = {demand.name: demand.of(name) for demand in wanted if demand.of(name)}
    if not amounts:
        return None
    need, have = sum(amounts.values()), sum(node.of(name) for node in nodes if not node.spare)
    each = ", ".join(f"{d.name} {d.members * d.actors} x {d.each(name):g}" for d in wanted if d.name in amounts)
    largest = max(amounts, key=lambda role: amounts[role])
    key = f"{largest}.resources.{KEYS.get(name) or f'custom.{name}'}"
    asked = f"the layout takes {need:g} {name} ({each})"
    there = f"the cluster has {have:g} on {counted(sum(not node.spare for node in nodes), 'node')}"
    most = survey.most.get(name, 0.0)
    if have + 1e-6 < need <= most + 1e-6:
        return Comparison("tight", key, asked, f"{there}, and may grow to {most:g}", "the run waits for new nodes")
    if need > have + 1e-6:
        remedy = f"lower {_count_key(largest)} or {key}, or add nodes"
        return Comparison("short", key, asked, f"{there}: {need - max(have, most):g} short", remedy)
    if need > survey.idle.get(name, have) + 1e-6:
        return Comparison("tight", key, asked, f"{there}, {survey.idle[name]:g} free now", "the run waits for a place")
    return Comparison("fits", key, asked, there)


def _places(placed: Placed, nodes: Sequence[Node]) -> Comparison:
    """Whether every bundle has a place; else the largest that has none."""
    bundles = counted(len(placed.bundles), "bundle")
    if not placed.homeless:
        used = counted(len(set(placed.homes)), "node")
        return Comparison("fits", "resources", f"the layout takes {bundles}", f"each has a place, on {used} in all")
    bundle = max(placed.homeless, key=lambda bundle: (bundle.gpus, bundle.cpus))
    asked = f"{bundle.name} takes bundles of {bundle.cpus:g} CPU and {bundle.gpus:g} GPU, each on one node"
    if wanted := {**bundle.custom, **bundle.labels}:
        asked += f" with {wanted}"
    if bundle.placement != "pack":
        asked += f", placed {bundle.placement}"
    there = f"{len(placed.homeless)} of {bundles} found no place beside the others"
    if not any(node.holds(bundle) for node in nodes):
        if any(node.holds(replace(bundle, labels={})) for node in nodes):
            there = "no node has these labels"
        elif any(node.holds(replace(bundle, labels={}, custom={})) for node in nodes):
            there = "no node has these custom resources"
        else:
            there = "no node is that large"
    remedy = f"lower {bundle.name}.resources or {_count_key(bundle.name)}, or add such a node"
    return Comparison("short", f"{bundle.name}.resources", asked, f"{there}: {_kinds(nodes)}", remedy)


def _disk(recipe: Recipe, student: Size, samples: int, available: int) -> Comparison:
    """Checkpoints and export are exact; samples are an upper bound, so what only they exceed is tight."""
    length = recipe.objective.length
    anchored = bool(length and length.gate and length.gate.on_fail == "rollback")
    count = recipe.checkpoint.keep + 1 + anchored
    each = estimates.checkpoint_bytes(student, recipe.learner, len(recipe.scored_with("ema")))
    export = estimates.export_bytes(student.parameters, recipe.learner.dtype)
    certain = count * each + export
    asked = (
        f"{count} checkpoints of {size(each)}, an exported model of {size(export)} and samples of at most "
        f"{size(samples)} take {size(certain + samples)}"
    )
    there = f"{recipe.run.root} has {size(available)} for this run"
    if certain > available:
        remedy = "free space, set run.root to a larger disk, or lower checkpoint.keep"
        return Comparison("short", "run.root", asked, there, remedy)
    remedy = "free space, set run.root to a larger disk, or raise record.every"
    return Comparison("tight" if certain + samples > available else "fits", "run.root", asked, there, remedy)


def _caches(recipe: Recipe, sizes: Mapping[str, Size], roles: set[str]) -> list[Comparison]:
    """vLLM's KV caches on CPUs; on a GPU vLLM gives them what the weights leave."""
    found = []
    for role, (model, engine) in estimates.engines(recipe).items():
        each = sizes[model].key_values
        if role in roles and engine.engine == "vllm" and not engine.resources.gpus and each is not None:
            found.append(_cache(role, engine, each))
    return found


def _cache(role: str, engine: Rollout | Scorer, key_values: int) -> Comparison:
    """One response of full length must fit, or vLLM does not start; `max_concurrent` responses should."""
    context, available = engine.max_context_tokens, engine.kv_cache_gib * GIB
    concurrent = engine.max_concurrent if isinstance(engine, Rollout) else 1
    one = estimates.key_value_bytes(key_values, context, engine.dtype)
    asked = f"{concurrent} x {context} tokens take {size(concurrent * one)}"
    there, key = f"the cache has {engine.kv_cache_gib} GiB, room for {available // one}", f"{role}.kv_cache_gib"
    if one > available:
        return Comparison(
            "short", key, asked, there, f"raise it to {ceil(one / GIB)} or lower {role_of(role)}.max_context_tokens"
        )
    remedy = f"vLLM lets what is beyond wait; raise it to {ceil(concurrent * one / GIB)} if responses are that long"
    return Comparison("tight" if concurrent * one > available else "fits", key, asked, there, remedy)


def _kinds(nodes: Sequence[Node]) -> str:
    """Each kind of node once: the number of nodes and what one offers."""
    kinds = Counter((node.cpus, node.gpus) for node in nodes).items()
    return ", ".join(f"{counted(count, 'node')} of {cpus:g} CPU and {gpus:g} GPU" for (cpus, gpus), count in kinds)


def _count_key(role: str) -> str:
    return "learner.ranks" if role == "learner" else f"{role}.members"
