"""docs/evaluation.md: its example is run, and what is printed of its sets is what the page says is measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from orchestrator.run import DONE
from orchestrator.surface.measuring.evaluating import table_of
from tests.contributing.pages import ROOT, rows, section
from tests.unit.runs.test_sets import GENERAL, MATHS, TEXT, TRAIN, prompt, summary
from tests.unit.simulation import Simulation, recipe, trained

PAGE = ROOT / "docs" / "evaluation.md"
SETS = {"maths": MATHS, "maths_greedy": MATHS, "general": GENERAL, "old_task": TEXT}


def measured(kind: str) -> set[str]:
    """The names that the page has for a set of this kind: `prompts` or `text`."""
    table = [(re.findall(r"`([^`]+)`", name), on) for name, on, _ in rows(section(PAGE, "What is measured"))]
    return {name for names, on in table for name in names if on in (kind, "both")}


def printed(sets: dict[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """By set, the values of the table that `logratio evaluate` prints."""
    console = Console(width=100, record=True, file=(folder / "out").open("w"))
    console.print(table_of(sets))
    found: dict[str, dict[str, str]] = {name: {} for name in sets}
    for line in console.export_text().splitlines():
        name, metric, value, *_ = [*(cell.strip() for cell in line.strip("│").split("│")), "", "", ""]
        if name in found:
            found[name][metric] = value
    return found


def test_the_example_measures_what_the_page_says_when_it_says(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    tree = yaml.safe_load(block)
    assert tree["evaluate"]["sets"].keys() == SETS.keys()
    run = Simulation(recipe(tmp_path, run={"steps": 40}, **tree), train=TRAIN, heldout=[prompt(500)], sets=SETS)
    assert run.go() == DONE
    found = summary(tmp_path)
    of = found["evaluation"]["sets"]
    due = {name: [line["step"] for line in of[name]["steps"]] for name in SETS}
    assert due == {"maths": [20], "maths_greedy": [20], "general": [], "old_task": [20]}
    assert found["best"]["metric"] == "maths.pass@1" and (tmp_path / "sim" / "model-best").exists()

    said = printed({name: of[name]["after"] for name in SETS}, tmp_path)
    counts = {"samples", "samples_skipped", "prompts"}
    names = {name: {re.sub(r"^(pass@|avg@).*", r"\1", metric) for metric in said[name]} - counts for name in SETS}
    on_page = {kind: {re.sub("@.$", "@", name) for name in measured(kind)} for kind in ("prompts", "text")}
    assert names["maths"] == on_page["prompts"] - {"format_rate", "forward_kl"}, (
        "no format; simulated members have none"
    )
    assert names["maths_greedy"] <= on_page["prompts"] and names["general"] <= on_page["prompts"]
    assert "reverse_kl" not in said["general"] and "start_kl" in said["general"], "no teacher scores it"
    assert names["old_task"] == on_page["text"]
    assert {"pass@1", "pass@4", "pass@8", "avg@8"} <= said["maths"].keys()
    drawn = trained(tmp_path, "eval_after_maths")
    assert float(said["maths"]["avg@8"]) == pytest.approx(sum(len(r["response_ids"]) % 2 for r in drawn) / 40, abs=1e-3)
