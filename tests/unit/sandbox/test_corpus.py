"""None of the programs gets out of the sandbox or cheats its grader, and honest ones are graded rightly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewards.sandbox.cases import read_cases
from rewards.sandbox.grade import Grade, grade
from rewards.sandbox.mechanisms import Mechanism
from tests.unit.sandbox.corpus import FAMILIES, Drawn, draw
from tests.unit.sandbox.corpus.made import Made
from tests.unit.sandbox.corpus.world import World, world

SEED = 20


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world")) as made:
        yield made


def graded(mechanism: Mechanism, made: Made) -> Grade:
    return grade(mechanism, made.source, read_cases(made.tests), made.limits, 1e-6, all_cases=False)


def misjudged(mechanism: Mechanism, drawn: Sequence[Drawn]) -> list[str]:
    """Two at a time, so that programs of one sandbox may also reach for those of another."""
    with ThreadPoolExecutor(2) as pool:
        grades = list(pool.map(lambda one: graded(mechanism, one.made), drawn))
    wrong = [(one, found) for one, found in zip(drawn, grades, strict=True) if found.whole != one.made.passes]
    return [f"{one.family}: {found}\n{one.made.source[:500]}" for one, found in wrong]


def test_one_program_of_each_family(mechanism: Mechanism, around: World) -> None:
    assert misjudged(mechanism, list(draw(len(FAMILIES), SEED, around.targets))) == []
    assert around.harm() == []


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_thousands_of_programs(
    mechanism: Mechanism, around: World, record_property: Callable[[str, object], None]
) -> None:
    drawn = list(draw(1500, SEED + 1, around.targets))
    began = time.monotonic()
    wrong = misjudged(mechanism, drawn)
    seconds = time.monotonic() - began
    record_property("programs", len(drawn))
    record_property("families", len(FAMILIES))
    record_property("mechanism", mechanism.name)
    record_property("programs a second, two at a time", round(len(drawn) / seconds, 1))
    honest = [one for one in drawn if one.family.startswith(("right", "wrong", "honest"))]
    began = time.monotonic()
    misjudged(mechanism, honest)
    record_property("honest programs a second", round(len(honest) / (time.monotonic() - began), 1))
    assert wrong == []
    assert around.harm() == []
