"""docs/methods.md: a method is found by its name, and leads to a recipe and to functions that exist."""

from __future__ import annotations

import re

import pytest

from tests.contributing.pages import ROOT, definitions, rows

PAGE = ROOT / "docs" / "methods.md"
TEXT = PAGE.read_text()
RECIPES = sorted(file.stem for file in (ROOT / "configs").glob("*.yaml"))
FUNCTIONS = sorted(set(re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", TEXT)))
NAMES = (
    "GKD MiniLLM OPD SDFT OPSD GRPO Dr. GRPO DAPO GSPO CISPO RLOO PPO RLHF DAgger RFT SeqKD DistiLLM JSD SFT ExOPD "
    "PowerOPD vOPD MOPD SDPG RLSD EOPD DPO ULD"
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_on_the_page(recipe: str) -> None:
    assert f"[`{recipe}`](../configs/{recipe}.yaml)" in TEXT


@pytest.mark.parametrize(("function", "file"), FUNCTIONS)
def test_every_function_of_the_page_exists(function: str, file: str) -> None:
    if function.endswith(".py"):
        assert (ROOT / file).exists()
    else:
        assert function in definitions(ROOT / file)


@pytest.mark.parametrize("name", re.findall(r"Dr\. GRPO|\w+", NAMES))
def test_a_method_is_found_by_its_name(name: str) -> None:
    assert re.search(rf"\b{re.escape(name)}\b", TEXT)


def test_every_offered_method_has_a_recipe_and_code() -> None:
    offered = [row for row in rows(TEXT) if len(row) == 4 and row[0] != "method"]
    assert len(offered) >= len(RECIPES) - 3  # base, rl and teachers are shared parts
    assert not [row[0] for row in offered if not row[1] or not row[3]]
