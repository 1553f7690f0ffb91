"""Places the bundles of a layout on nodes. Pure.

A bundle lies on one node; the bundles of a member may lie on several. First-fit: bundles with the fewest possible nodes
first, larger before smaller, each on the first node that holds it, nodes with fewer GPUs first. It is conservative: a
placement that it finds is valid, but another order may find one where it does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

UNIT = 10_000  # Ray counts resources in ten-thousandths, so that shares add up


@dataclass(frozen=True)
class Bundle:
    """What one actor reserves: CPUs, GPUs (a share below 1, else whole ones) and the labels its node must have."""

    role: str
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """The total resources of a node."""

    name: str
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    def holds(self, bundle: Bundle) -> bool:
        """Whether the bundle would fit if the node were empty."""
        return _Left(self).fits(bundle)


@dataclass(frozen=True)
class Placed:
    """Bundles and the names of their nodes, in order; None for a bundle without a place."""

    bundles: Sequence[Bundle]
    homes: tuple[str | None, ...]

    @property
    def homeless(self) -> list[Bundle]:
        return [bundle for bundle, home in zip(self.bundles, self.homes, strict=True) if home is None]

    def on(self, node: str) -> Counter[str]:
        """Number of bundles on a node, by role."""
        return Counter(bundle.role for bundle, home in zip(self.bundles, self.homes, strict=True) if home == node)

    def share(self, node: str, role: str) -> float:
        """Share of a role's bundles that lie on a node; 0 for a role without bundles."""
        return self.on(node)[role] / max(1, sum(bundle.role == role for bundle in self.bundles))

    def first(self, role: str) -> str | None:
        """The node of a role's first bundle."""
        return next(home for bundle, home in zip(self.bundles, self.homes, strict=True) if bundle.role == role)


def place(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> Placed:
    """Place every bundle on the first node that holds it. Names of nodes must be distinct."""
    nodes_left = [_Left(node) for node in sorted(nodes, key=lambda node: node.gpus)]
    possible = [sum(node.holds(bundle) for node in nodes) for bundle in bundles]
    homes: list[str | None] = [None] * len(bundles)
    for i in sorted(range(len(bundles)), key=lambda i: (possible[i], -bundles[i].gpus, -bundles[i].cpus)):
        left = next((left for left in nodes_left if left.fits(bundles[i])), None)
        if left is not None:
            left.take(bundles[i])
            homes[i] = left.node.name
    return Placed(bundles, tuple(homes))


def matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node's labels match selectors in Ray's notation: value, !value, in(a,b) or !in(a,b)."""
    return all(_matches(labels.get(key), selector) for key, selector in wanted.items())


def _matches(label: str | None, selector: str) -> bool:
    negated, selector = selector.startswith("!"), selector.removeprefix("!")
    several = re.fullmatch(r"in\((.*)\)", selector)
    values = [value.strip() for value in several[1].split(",")] if several else [selector]
    return (label in values) != negated


class _Left:
    """What is left of a node while bundles are placed, in units of 1/UNIT CPU or GPU."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._cpus = _units(node.cpus)
        self._gpus = [UNIT] * int(node.gpus)

    def fits(self, bundle: Bundle) -> bool:
        enough = _units(bundle.cpus) <= self._cpus and _without(self._gpus, _units(bundle.gpus)) is not None
        return enough and matches(self.node.labels, bundle.labels)

    def take(self, bundle: Bundle) -> None:
        self._cpus -= _units(bundle.cpus)
        self._gpus = _without(self._gpus, _units(bundle.gpus)) or []


def _units(amount: float) -> int:
    return round(amount * UNIT)


def _without(gpus: Sequence[int], wanted: int) -> list[int] | None:
    """What is left of each GPU, or None if too little. A share comes from the fullest GPU that has it; 1 and more are
    whole GPUs."""
    left = sorted(gpus)
    if wanted < UNIT:
        chosen = next((i for i, free in enumerate(left) if free >= wanted), None)
        if wanted and chosen is None:
            return None
        return [free - wanted if wanted and i == chosen else free for i, free in enumerate(left)]
    count = -(-wanted // UNIT)
    return left[:-count] if left[-count:] == [UNIT] * count else None
