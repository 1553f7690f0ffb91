"""docs/research.md: its commands are run on written run directories, and its tables name what there is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.surface.research.curves import AXES
from tests.contributing.pages import ROOT, rows
from tests.unit.research.written_runs import Written

PAGE = ROOT / "docs" / "research.md"


def commands(verb: str) -> list[list[str]]:
    """The arguments of the page's commands."""
    lines = "".join(re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.M | re.S)).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"logratio {verb} ")]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs that the page's commands name."""
    for name, lr, after in (("low", 0.1, 0.3), ("high", 0.2, 1.0)):
        for seed in range(3):
            Written(f"{name}-{seed}", seed, lr, {0: 0.3, 4: after}).to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_its_comparisons_compare(runs: Path) -> None:
    for command in commands("compare"):
        told = CliRunner().invoke(app, command)
        assert told.exit_code == 0, (command, told.output, told.exception)
    found = json.loads(Path("compared.json").read_text())
    keys = re.findall(r"`comparisons`: `([^`]+)`", PAGE.read_text())[0].split()
    assert [list(row) for row in found["comparisons"]] == [keys] * len(found["comparisons"])
    assert any(row["interval"] and row["interval"][1] < 0 for row in found["comparisons"])


def test_the_page_has_every_budget() -> None:
    part = PAGE.read_text().split("\n### At equal what\n")[1].split("\n### ")[0]
    assert {name.strip("`") for name, *_ in rows(part)} >= set(AXES)
