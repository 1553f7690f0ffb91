"""Places the bundles of a layout on nodes. Pure.

A bundle lies on one node; the bundles of a member may lie on several. First-fit: bundles with the fewest possible nodes
first, larger before smaller, each on the first node that holds it, nodes with fewer GPUs first. A role's `placement`
puts a member's bundles on one node, or a role's bundles on many. It is conservative: a placement that it finds is
valid, but another order may find one where it does not.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from configs.roles.sizes import Spreading, name_of

UNIT = 10_000  # Ray counts resources in ten-thousandths, so that shares add up


@dataclass(frozen=True)
class Bundle:
    """What one actor reserves: CPUs, GPUs (a share below 1, else whole ones), custom resources, and the labels its node
    must have. `member`: its number in its kind of the role; the bundles of a member are placed together."""

    role: str
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    custom: Mapping[str, float] = field(default_factory=dict)
    placement: Spreading = "pack"
    member: int | None = None
    kind: str = ""

    @property
    def name(self) -> str:
        return name_of(self.role, self.kind)


@dataclass(frozen=True)
class Node:
    """The total resources of a node. `spare`: it is not there yet; an autoscaler may add it."""

    name: str
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    custom: Mapping[str, float] = field(default_factory=dict)
    spare: bool = False

    def of(self, name: str) -> float:
        """What the node has of a resource, by Ray's name."""
        return {"CPU": self.cpus, "GPU": self.gpus}.get(name, self.custom.get(name, 0.0))

    def holds(self, bundle: Bundle) -> bool:
        """Whether the bundle would fit if the node were empty."""
        return _Left(self).fits(bundle)


@dataclass(frozen=True)
class Placed:
    """Bundles and the names of their nodes, in order; None for a bundle without a place. `gpus`: the numbers of each
    bundle's GPUs on its node; empty if only Ray knows them."""

    bundles: Sequence[Bundle]
    homes: tuple[str | None, ...]
    gpus: tuple[tuple[int, ...], ...] = ()

    @property
    def homeless(self) -> list[Bundle]:
        return [bundle for bundle, home in zip(self.bundles, self.homes, strict=True) if home is None]

    @property
    def pairs(self) -> list[tuple[Bundle, str]]:
        """The bundles that have a place, each with its node."""
        return [(bundle, home) for bundle, home in zip(self.bundles, self.homes, strict=True) if home is not None]

    def on(self, node: str) -> Counter[str]:
        """Number of bundles on a node, by the name of their role and kind."""
        return Counter(bundle.name for bundle, home in zip(self.bundles, self.homes, strict=True) if home == node)

    def of_role(self, node: str, role: str) -> int:
        """Number of a role's bundles on a node."""
        return sum(bundle.role == role and home == node for bundle, home in self.pairs)

    def on_gpus(self, node: str) -> dict[int, list[Bundle]]:
        """The bundles on each GPU of a node."""
        found: dict[int, list[Bundle]] = defaultdict(list)
        for bundle, home, gpus in zip(self.bundles, self.homes, self.gpus, strict=bool(self.gpus)):
            for gpu in gpus if home == node else ():
                found[gpu].append(bundle)
        return dict(sorted(found.items()))

    def share(self, node: str, role: str) -> float:
        """Share of a role's bundles that lie on a node; 0 for a role without bundles."""
        return self.of_role(node, role) / max(1, sum(bundle.role == role for bundle in self.bundles))

    def first(self, role: str) -> str | None:
        """The node of a role's first bundle."""
        return next(home for bundle, home in zip(self.bundles, self.homes, strict=True) if bundle.role == role)


def place(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> Placed:
    """Place every bundle, or every member whose bundles belong on one node, hardest first. Names of nodes must be
    distinct."""
    nodes_left = [_Left(node) for node in sorted(nodes, key=lambda node: (node.spare, node.gpus))]
    homes: dict[int, tuple[str, tuple[int, ...]]] = {}
    possible = [sum(node.holds(bundle) for node in nodes) for bundle in bundles]

    def hardness(gang: Sequence[int]) -> tuple[float, ...]:
        return (min(possible[i] for i in gang), *(-amount for amount in size_on_a_node([bundles[i] for i in gang])))

    for gang in sorted(_gangs(bundles), key=hardness):
        for i, left in _seats(bundles, gang, nodes_left):
            homes[i] = (left.node.name, left.take(bundles[i]))
    at = [homes.get(i, (None, ())) for i in range(len(bundles))]
    return Placed(bundles, tuple(home for home, _ in at), tuple(gpus for _, gpus in at))


def size_on_a_node(gang: Sequence[Bundle]) -> tuple[float, float]:
    """GPUs and CPUs that a member's bundles want of one node: all of them where they pack, else those of the
    largest."""
    together = sum if gang[0].placement in ("pack", "strict_pack") else max
    return together(bundle.gpus for bundle in gang), together(bundle.cpus for bundle in gang)


def matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node's labels match selectors in Ray's notation: value, !value, in(a,b) or !in(a,b)."""
    return all(_matches(labels.get(key), selector) for key, selector in wanted.items())


def _matches(label: str | None, selector: str) -> bool:
    negated, selector = selector.startswith("!"), selector.removeprefix("!")
    several = re.fullmatch(r"in\((.*)\)", selector)
    values = [value.strip() for value in several[1].split(",")] if several else [selector]
    return (label in values) != negated


def _gangs(bundles: Sequence[Bundle]) -> list[list[int]]:
    """The numbers of the bundles of each member, larger bundles first."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, bundle in enumerate(bundles):
        found[bundle.name, -1 - i if bundle.member is None else bundle.member].append(i)
    return [sorted(gang, key=lambda i: (-bundles[i].gpus, -bundles[i].cpus)) for gang in found.values()]


def _seats(bundles: Sequence[Bundle], gang: Sequence[int], nodes_left: Sequence[_Left]) -> Iterable[tuple[int, _Left]]:
    """Bundles of a member and their nodes, one after the other; a bundle without a place is left out. The caller takes
    each place before it asks for the next."""
    placement = bundles[gang[0]].placement
    if placement in ("pack", "strict_pack") and len(gang) > 1:
        whole = next((left for left in nodes_left if left.fit_all([bundles[i] for i in gang])), None)
        if whole is not None or placement == "strict_pack":
            yield from ((i, whole) for i in gang if whole is not None)
            return
    for i in gang:
        fitting_nodes = [left for left in nodes_left if left.fits(bundles[i])]
        if placement in ("spread", "strict_spread"):
            fitting_nodes.sort(key=lambda left: left.roles[bundles[i].role])
        if fitting_nodes and not (placement == "strict_spread" and fitting_nodes[0].roles[bundles[i].role]):
            yield i, fitting_nodes[0]


class _Left:
    """What is left of a node while bundles are placed, in units of 1/UNIT. `roles`: bundles there, by role."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.roles: Counter[str] = Counter()
        self._amounts = {"": _units(node.cpus)} | {name: _units(amount) for name, amount in node.custom.items()}
        self._gpus = [UNIT] * int(node.gpus)

    def fits(self, bundle: Bundle) -> bool:
        enough = all(self._amounts.get(name, 0) >= amount for name, amount in _amounts(bundle).items())
        enough = enough and _chosen(self._gpus, _units(bundle.gpus)) is not None
        return enough and matches(self.node.labels, bundle.labels)

    def fit_all(self, bundles: Iterable[Bundle]) -> bool:
        """Whether all of them fit at once."""
        trial = _Left(self.node)
        trial._amounts, trial._gpus = dict(self._amounts), list(self._gpus)
        return all(trial.fits(bundle) and trial.take(bundle) is not None for bundle in bundles)

    def take(self, bundle: Bundle) -> tuple[int, ...]:
        """Reserve a bundle that fits; returns the numbers of its GPUs."""
        for name, amount in _amounts(bundle).items():
            self._amounts[name] -= amount
        wanted = _units(bundle.gpus)
        gpus = _chosen(self._gpus, wanted) or ()
        for gpu in gpus:
            self._gpus[gpu] -= min(wanted, UNIT)
        self.roles[bundle.role] += 1
        return gpus


def _amounts(bundle: Bundle) -> dict[str, int]:
    """Units of CPUs, by no name, and of each custom resource."""
    return {"": _units(bundle.cpus)} | {name: _units(amount) for name, amount in bundle.custom.items()}


def _units(amount: float) -> int:
    return round(amount * UNIT)


def _chosen(gpus: Sequence[int], wanted: int) -> tuple[int, ...] | None:
    """The numbers of the GPUs that give `wanted`; None if too little is left. A share comes from the fullest GPU that
    has it; 1 and more are whole GPUs."""
    if not wanted:
        return ()
    if wanted < UNIT:
        fitting = [i for i, free in enumerate(gpus) if free >= wanted]
        return (min(fitting, key=lambda i: gpus[i]),) if fitting else None
    count, whole = -(-wanted // UNIT), [i for i, free in enumerate(gpus) if free == UNIT]
    return tuple(whole[:count]) if len(whole) >= count else None
