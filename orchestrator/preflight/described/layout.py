"""A recipe on a described cluster: where each role lies, and every comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema import Recipe
from orchestrator.placement.packing import Placed, place
from orchestrator.preflight import capacity
from orchestrator.preflight.comparison import Comparison, counted
from orchestrator.preflight.described.gpus import compare_gpus
from orchestrator.preflight.described.models import Described
from orchestrator.preflight.described.spec import ClusterSpec, survey_of
from orchestrator.preflight.survey import Survey


@dataclass(frozen=True)
class Laid:
    """`homes`: a line for each node with a role."""

    comparisons: tuple[Comparison, ...]
    homes: tuple[str, ...]


def lay_out(recipe: Recipe, spec: ClusterSpec, described: Described) -> Laid:
    """Place a recipe's roles on the nodes of a spec, and compare."""
    survey = survey_of(spec)
    placed = capacity.packed(recipe, survey)
    found = capacity.compare(recipe, described.extent, described.sizes, survey, placed)
    if placed.homeless:
        return Laid(tuple(found), ())
    found += compare_gpus(recipe, described.sizes, survey.machines, placed)
    found += [*_spare(placed, survey), *_largest(recipe, survey)]
    return Laid(tuple(found), tuple(_homes(placed, survey)))


def _homes(placed: Placed, survey: Survey) -> Iterator[str]:
    for machine in survey.machines:
        here = [b for b, home in zip(placed.bundles, placed.homes, strict=True) if home == machine.node.name]
        if not here:
            continue
        roles = ", ".join(f"{role} x {count}" for role, count in placed.on(machine.node.name).items())
        cpus = f"{sum(bundle.cpus for bundle in here):g} of {machine.node.cpus:g} CPU"
        gpus = f"{sum(bundle.gpus for bundle in here):g} of {machine.node.gpus:g} GPU"
        yield f"{machine.node.name}: {roles} ({cpus}, {gpus})"


def _spare(placed: Placed, survey: Survey) -> Iterator[Comparison]:
    """Nodes that an autoscaler must add."""
    new = [machine.node.name for machine in survey.machines if machine.node.spare and machine.node.name in placed.homes]
    if new:
        asked = f"the layout takes {counted(len(new), 'node')} more: {', '.join(new)}"
        yield Comparison("tight", "nodes", asked, "an autoscaler may add them", "the run waits for new nodes")


def _largest(recipe: Recipe, survey: Survey) -> Iterator[Comparison]:
    """The layout with every role at the most members that `autoscale` may give it."""
    if not recipe.autoscale:
        return
    bundles = capacity.bundles_of(recipe, at_most=True)
    placed = place(bundles, [machine.node for machine in survey.machines])
    asked = f"at the maxima the layout takes {counted(len(bundles), 'bundle')}"
    if not placed.homeless:
        yield Comparison("fits", "autoscale", asked, "each has a place")
        return
    there = f"{len(placed.homeless)} of them ({placed.homeless[0].name}) found no place"
    yield Comparison(
        "tight", "autoscale", asked, there, "lower max, or add nodes; members without a place are given up"
    )
