"""A recipe with stages: killed, stopped and begun again in its second stage, done twice, and refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import RecipeError, load_recipe, load_tree
from configs.pipeline import parse_pipeline
from orchestrator.surface.pipelines.folders import stage_recipe
from tests.unit.simulation import recipe as simulated_recipe
from tests.unit.surface.staged import Server, server

STAGES: dict[str, Any] = {
    "one": {"run": {"steps": 3}},
    "two": {"models": {"student": {"path": "stage:one"}}, "run": {"steps": 6}},
    "three": {"models": {"teacher": {"path": "stage:two"}}, "run": {"steps": 2}},
}
RUNS = ["mine-01-one", "mine-02-two", "mine-03-three"]


def written(root: Path) -> Path:
    """The recipe, as a file; its runs are in the same folder."""
    tree = simulated_recipe(root, metrics={"trackers": []}).model_dump(mode="json")
    tree["run"] = {"name": "mine", "root": str(root), "steps": 1, "seed": 5}
    (file := root / "p.yaml").write_text(yaml.safe_dump(tree | {"stages": STAGES}, sort_keys=False))
    return file


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture(scope="module")
def logratio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("said")) as asked:
        yield asked


def lines(root: Path, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "mine" / run / "metrics.jsonl").read_text().splitlines()]


def summary(root: Path) -> dict[str, Any]:
    return json.loads((root / "mine" / "summary.json").read_text())


def losses(root: Path) -> list[list[float]]:
    return [[line["loss"] for line in lines(root, run)] for run in RUNS]


@pytest.fixture(scope="module")
def whole(logratio: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs of a pipeline that nobody interrupted."""
    root = tmp_path_factory.mktemp("whole")
    done = logratio("run", written(root))
    assert done.code == 0, done.output
    return root


def test_each_stage_is_a_run_that_begins_with_what_it_names(whole: Path) -> None:
    found = [load_recipe(whole / "mine" / run / "recipe.yaml") for run in RUNS]
    assert [recipe.run.stage for recipe in found] == ["one", "two", "three"]
    assert found[1].models["student"].path == str(whole / "mine" / RUNS[0] / "model")
    assert found[2].models["student"].path == "/none"
    assert found[2].models["teacher"].path == str(whole / "mine" / RUNS[1] / "model")
    assert [len(lines(whole, run)) for run in RUNS] == [3, 6, 2]
    assert [(s["stage"], s["run"], s["exit"], s["steps"]) for s in summary(whole)["stages"]] == [
        ("one", RUNS[0], 0, 3),
        ("two", RUNS[1], 0, 6),
        ("three", RUNS[2], 0, 2),
    ]
    assert (whole / "mine" / RUNS[2] / "report.html").exists()


def test_done_it_stays_as_it_is(logratio: Server, whole: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (whole / "mine").rglob("*") if file.is_file()}
    again = logratio("run", whole / "p.yaml")
    assert again.code == 0 and "is done; choose another run.name" in again.output
    assert logratio("resume", whole / "mine").code == 0
    after = {file: file.stat().st_mtime_ns for file in (whole / "mine").rglob("*") if file.is_file()}
    assert {file.name for file in before if before[file] != after[file]} <= {"lock"} and before.keys() == after.keys()


def test_another_recipe_is_refused_with_its_keys(logratio: Server, whole: Path) -> None:
    other = logratio("run", whole / "p.yaml", "stages.two.run.steps=7")
    assert other.code == 2
    assert "holds a run of another recipe: stages.two.run.steps was 6, now 7. Choose another run.name" in other.output


def test_killed_in_its_second_stage_it_goes_on_there(
    logratio: Server, whole: Path, recipe: Path, tmp_path: Path
) -> None:
    killed = logratio("run", recipe, stage="two", step=3, number=signal.SIGKILL)
    assert killed.code == -signal.SIGKILL and not (tmp_path / "mine" / RUNS[2]).exists()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "mine" / RUNS[0]).rglob("*")}
    resumed = logratio("resume", tmp_path / "mine")
    assert resumed.code == 0, resumed.output
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "mine" / RUNS[0]).rglob("*")}
    assert losses(tmp_path) == losses(whole)


def test_stopped_by_a_person_it_waits_and_goes_on(logratio: Server, whole: Path, recipe: Path, tmp_path: Path) -> None:
    stopped = logratio("run", recipe, stage="two", step=2, number=signal.SIGINT)
    assert stopped.code == 3 and "Traceback" not in stopped.output
    assert "go on with: logratio resume mine\n" in stopped.output
    assert summary(tmp_path)["exit"] == 3 and [s["exit"] for s in summary(tmp_path)["stages"]] == [0, 3, None]
    again = logratio("run", recipe)
    assert again.code == 3 and "was stopped by a person" in again.output
    assert logratio("resume", tmp_path / "mine").code == 0
    assert losses(tmp_path) == losses(whole)


def test_a_model_that_is_gone_is_not_replaced_by_the_start(recipe: Path, tmp_path: Path) -> None:
    pipeline = parse_pipeline(load_tree(recipe))
    directory = tmp_path / "mine"
    assert stage_recipe(pipeline, pipeline.stages[1], directory, all_there=False).models["student"].path == "/none"
    with pytest.raises(RecipeError, match=r"stage:one: .*mine-01-one/model is gone; restore it, or remove"):
        stage_recipe(pipeline, pipeline.stages[1], directory)


def test_what_is_refused_leaves_nothing(logratio: Server, recipe: Path, tmp_path: Path) -> None:
    refused = logratio("run", recipe, "stages.three.objective.support=middle")
    assert refused.code == 2 and "stages.three: objective.support: 'middle' is wrong" in refused.output
    assert not (tmp_path / "mine").exists()
