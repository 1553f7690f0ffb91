"""docs/research.md: its commands are run on written run directories, and its tables name what there is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.learning.replaying import Gradient
from orchestrator.cli import app
from orchestrator.surface.research.curves import AXES
from orchestrator.surface.research.grid import arms_of, values_of
from orchestrator.surface.research.replaying import other_recipe
from orchestrator.surface.research.stored import missing
from tests.contributing.pages import ROOT, rows
from tests.unit.research.written_runs import Written
from tests.unit.simulation import recipe as simulated

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
            for folder in ("runs", "runs/lr"):  # the sweep's has the same
                Written(f"{name}-{seed}", seed, lr, {0: 0.3, 4: after}).to(tmp_path / folder)
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


def test_its_sweep_has_the_arms_that_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = simulated(tmp_path).model_dump(mode="json", exclude_unset=True)
    Path("recipe.yaml").write_text(json.dumps(given))
    ((_, file, *values),) = commands("sweep")
    name, _, arms = arms_of(Path(file), values, lambda recipe: recipe)
    assert name == "lr" and len(arms) == 6
    assert any(f"runs/{name}" in command for command in commands("compare"))
    assert "[-1,1],[-5,5]" in PAGE.read_text() and len(values_of("[-1,1],[-5,5]")) == 2


def test_its_replays_are_read_as_objectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they compute is tested in tests/unit/research/test_replay.py."""
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text("{target: teacher, estimator: k2_in_loss}")
    own = simulated(tmp_path)
    for _, _, *given in commands("replay"):
        file = Path("other.yaml") if "--objective" in given else None
        other = other_recipe(own, file, [word for word in given if word.startswith("objective.")])
        assert other.objective != own.objective and missing(own, other.objective) is None


def test_the_page_has_every_number_of_a_replay() -> None:
    named = {word for name, *_ in rows(PAGE.read_text()) for word in re.findall(r"`([^`]+)`", name)}
    assert named >= set(Gradient([], groups=1).plain(1))
