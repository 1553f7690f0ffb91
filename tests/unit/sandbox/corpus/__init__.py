"""Programs for the sandbox, drawn by a seed: what tries to get out, what tries to cheat, and honest ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.unit.sandbox.corpus import attacks, cheats, honest
from tests.unit.sandbox.corpus.made import Made
from tests.unit.sandbox.corpus.world import Targets

Family = Callable[[random.Random, Targets], Made]


@dataclass(frozen=True)
class Drawn:
    family: str
    made: Made


FAMILIES: dict[str, Family] = {**attacks.FAMILIES, **cheats.FAMILIES, **honest.FAMILIES}


def draw(count: int, seed: int, targets: Targets) -> Iterator[Drawn]:
    """`count` programs, each family in turn."""
    names = list(FAMILIES)
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name = names[number % len(names)]
        yield Drawn(name, FAMILIES[name](rng, targets))
