"""Pages name what exists: files, functions, anchors, rooms, metrics; and they stay short enough to be read."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from actors.metrics import STEP_METRICS
from configs.load import parse_recipe
from orchestrator.run import DONE
from tests.contributing.pages import (
    PAGES,
    ROOT,
    anchors,
    definitions,
    links,
    named_members,
    named_modules,
    named_paths,
    rows,
    section,
)
from tests.unit.simulation import Simulation
from tests.unit.simulation import recipe as simulated

DESIGN = ROOT / "docs" / "design.md"
FLOORS = ("orchestrator", "actors", "audit", "objectives", "rewards", "configs", "tests", "scripts", "benchmarks")
WRITTEN_BY_A_RUN = ("docs/acceptance/summary.md",)
ENGINE_ROOMS = ("rollout/rollout", "rollout/response", "scoring/", "rewarding/", "learning/")  # real members only


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    missing = [path for path in named_paths(page) if not (ROOT / path).exists() and path not in WRITTEN_BY_A_RUN]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    a_users = {"my_losses.py", "my_rewards.py", "file.py"}
    there = {file.name for top in FLOORS for file in (ROOT / top).rglob("*.py")} | a_users
    assert not set(named_modules(page)) - there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_method_that_a_page_names_exists(page: Path) -> None:
    there = {name for top in FLOORS for file in (ROOT / top).rglob("*.py") for name in definitions(file)}
    assert not set(named_members(page)) - there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    lost = [
        f"{file.name}#{anchor}"
        for file, anchor in links(page)
        if not file.exists() or (anchor and anchor not in anchors(file))
    ]
    assert not lost


@pytest.mark.parametrize(("page", "lines"), [(DESIGN, 300), (ROOT / "README.md", 200)], ids=["design", "readme"])
def test_a_page_for_newcomers_is_short(page: Path, lines: int) -> None:
    assert len(page.read_text().splitlines()) <= lines


@pytest.mark.parametrize("recipe", re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S))
def test_a_recipe_of_the_readme_is_valid(recipe: str) -> None:
    assert parse_recipe(yaml.safe_load(recipe)).run.name == "mine"


def _rooms() -> Iterator[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        if contract.get("containers") in (["orchestrator"], ["actors"]):
            for layer in contract["layers"]:
                yield from layer.split(" | ")


@pytest.mark.parametrize("room", list(_rooms()))
def test_the_picture_of_the_house_has_every_room(room: str) -> None:
    picture = section(DESIGN, "The house").split("```")[1]
    assert room in picture.split()


def _walk() -> list[tuple[str, str]]:
    """(file, function) of each line of the walk."""
    found = [row for row in rows(section(DESIGN, "The walk")) if row[0].isdigit()]
    assert [int(row[0]) for row in found] == list(range(1, len(found) + 1))
    return [(row[2].strip("`"), row[1].strip("`")) for row in found]


def test_the_walk_is_short_and_names_functions_that_exist() -> None:
    walk = _walk()
    assert len(walk) < 35
    assert not [step for step in walk if step[1] not in definitions(ROOT / step[0])]


def test_a_run_takes_the_walk(tmp_path: Path) -> None:
    """Every function of the walk is called in a simulated run, but those of real members alone."""
    called: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT)):
            called.add((code.co_filename.removeprefix(f"{ROOT}/"), code.co_qualname))

    one = {"prompts_per_step": 1, "samples_per_prompt": 1}
    simulation = Simulation(simulated(tmp_path, run={"steps": 1}, batch=one), heldout=[])
    sys.setprofile(note)
    try:
        assert simulation.go() == DONE
    finally:
        sys.setprofile(None)
    expected = {
        step for step in _walk() if step[0].startswith(("orchestrator/", "actors/")) and not _is_of_engines(step[0])
    }
    assert not expected - called


def _is_of_engines(file: str) -> bool:
    return any(file.startswith(f"actors/{room}") for room in ENGINE_ROOMS)


def test_the_page_of_formats_has_every_metric() -> None:
    text = section(ROOT / "docs" / "formats.md", "metrics.jsonl")
    assert not [name for name in STEP_METRICS if f"`{name}`" not in text]
