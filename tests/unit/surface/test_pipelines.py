"""A recipe with stages: killed, stopped and begun again in any stage and between two, done twice, and refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import RecipeError, load_recipe, load_tree
from configs.pipeline import parse_pipeline
from orchestrator import cli
from orchestrator.surface.pipelines.folders import begun_stages, stage_recipe
from orchestrator.surface.status import headline
from orchestrator.surface.watch import server as watch_server
from orchestrator.surface.watch.run_files import RunFiles
from tests.unit.simulation import recipe as simulated_recipe
from tests.unit.surface.staged import AFTER, BEFORE, Server, server

STAGES: dict[str, Any] = {
    "one": {"run": {"steps": 3}},
    "two": {"models": {"student": {"path": "stage:one"}}, "run": {"steps": 6}},
    "three": {"models": {"teacher": {"path": "stage:two"}}, "run": {"steps": 2}},
}
RUNS = ["mine-01-one", "mine-02-two", "mine-03-three"]


def written(root: Path, stages: dict[str, Any] = STAGES) -> Path:
    """The recipe, as a file; its runs are in the same folder."""
    tree = simulated_recipe(root, metrics={"trackers": []}).model_dump(mode="json")
    tree["run"] = {"name": "mine", "root": str(root), "steps": 1, "seed": 5}
    (file := root / "p.yaml").write_text(yaml.safe_dump(tree | {"stages": stages}, sort_keys=False))
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


@pytest.mark.parametrize(
    ("stage", "step", "number"),
    [("one", 2, signal.SIGKILL), ("two", 3, signal.SIGKILL), ("two", 2, signal.SIGINT), ("three", 1, signal.SIGINT)],
    ids=["killed in the first", "killed", "stopped", "stopped in the last"],
)
def test_cut_short_in_a_stage_it_goes_on_there(
    logratio: Server, whole: Path, recipe: Path, tmp_path: Path, stage: str, step: int, number: signal.Signals
) -> None:
    cut, place = logratio("run", recipe, stage=stage, step=step, number=number), [*STAGES].index(stage)
    assert not any((tmp_path / "mine" / run).exists() for run in RUNS[place + 1 :])
    if number == signal.SIGKILL:
        assert cut.code == -number
    else:
        assert cut.code == 3 and "Traceback" not in cut.output
        assert "go on with: logratio resume mine\n" in cut.output
        ends = [0] * place + [3] + [None] * (2 - place)
        assert summary(tmp_path)["exit"] == 3 and [s["exit"] for s in summary(tmp_path)["stages"]] == ends
    earlier = [file for run in RUNS[:place] for file in (tmp_path / "mine" / run).rglob("*")]
    before = {file: file.stat().st_mtime_ns for file in earlier}
    resumed = logratio("resume", tmp_path / "mine")
    assert resumed.code == 0, resumed.output
    assert before == {file: file.stat().st_mtime_ns for file in earlier}, "what was done is not touched"
    assert losses(tmp_path) == losses(whole)


@pytest.mark.parametrize(
    ("stage", "step", "number", "marked"),
    [
        ("two", BEFORE, signal.SIGINT, "mine"),
        ("one", AFTER, signal.SIGINT, "mine"),
        ("two", AFTER, signal.SIGTERM, None),  # a scheduler takes the machine back
        ("two", AFTER, 0, RUNS[1]),
    ],
    ids=["before the first", "a person", "a scheduler", "logratio stop"],
)
def test_stopped_between_two_stages_the_next_one_waits(
    logratio: Server, whole: Path, recipe: Path, tmp_path: Path, stage: str, step: int, number: int, marked: str | None
) -> None:
    stopped, done = logratio("run", recipe, stage=stage, step=step, number=number), 0
    if step == AFTER:
        done = [*STAGES].index(stage) + 1
    assert stopped.code == 3 and "Traceback" not in stopped.output, stopped.output
    assert "stopped between two stages; go on with: logratio resume mine\n" in stopped.output
    assert [run for run in RUNS if (tmp_path / "mine" / run).exists()] == RUNS[:done]
    assert [s["exit"] for s in summary(tmp_path)["stages"]] == [0] * done + [None] * (3 - done)
    assert [file.parent.name for file in (tmp_path / "mine").rglob("stopped")] == ([marked] if marked else [])
    if marked == "mine" and done:
        again = logratio("run", recipe)
        assert again.code == 3 and "was stopped by a person" in again.output
    assert (logratio("resume", tmp_path / "mine") if marked else logratio("run", recipe)).code == 0
    assert losses(tmp_path) == losses(whole)


def test_pages_and_commands_know_its_stages(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, opened = whole / "mine", list[list[Path]]()
    runs = [directory / run for run in RUNS]
    assert begun_stages(directory) == runs and begun_stages(runs[1]) == [runs[1]]
    for run, stage in zip(runs, STAGES, strict=True):
        status = json.loads((run / "status.json").read_text())
        assert (status["stage"], RunFiles(run).overview()["stage"]) == (stage, stage)
        assert headline(status).startswith(f"stage {stage}, step ")
    monkeypatch.setattr(watch_server, "serve", lambda shown, port: opened.append(shown))
    cli.watch([str(directory)])
    cli.watch([str(directory), str(runs[0])])
    assert opened == [runs[1:], [runs[2], runs[0]]]
    shutil.copyfile(runs[1] / "recipe.yaml", tmp_path / "recipe.yaml")
    assert RunFiles(tmp_path).overview()["stage"] == "two", "of a run without a status"


EARLY: dict[str, Any] = {
    "floor": {
        "run": {"steps": 6, "stop": [{"metric": "entropy", "below": 1.5, "for_steps": 2}]},  # it is 1.0
        "checkpoint": {"best": {"metric": "heldout.reverse_kl", "mode": "max"}},  # falls with each step
        "evaluate": {"every": 1},
    },
    "reached": {
        "models": {"student": {"path": "stage:floor/best"}},
        "run": {"steps": 6, "stop": [{"metric": "heldout.reward_mean", "above": 0.1}]},
        "evaluate": {"every": 2},
    },
    "all": {
        "models": {"student": {"path": "stage:reached"}},
        "run": {"steps": 3, "stop": [{"metric": "entropy", "below": 0.5}]},
    },
}


def test_a_stage_ends_by_its_rule_and_the_next_begins_also_from_its_best(logratio: Server, tmp_path: Path) -> None:
    done = logratio("run", written(tmp_path, EARLY))
    assert done.code == 0, done.output
    stages = summary(tmp_path)["stages"]
    assert [(s["stage"], s["exit"], s["steps"]) for s in stages] == [("floor", 0, 2), ("reached", 0, 2), ("all", 0, 3)]
    assert stages[0]["ended_early"] == "entropy below 1.5 2 times in a row (1)" and stages[2]["ended_early"] is None
    assert stages[1]["ended_early"].startswith("heldout.reward_mean above 0.1 (")
    runs = [tmp_path / "mine" / stage["run"] for stage in stages]
    begins = [load_recipe(run / "recipe.yaml").models["student"].path for run in runs]
    assert begins == ["/none", str(runs[0] / "model-best"), str(runs[1] / "model")]
    assert json.loads((runs[0] / "summary.json").read_text())["best"]["step"] == 1
    saved = {step: runs[0] / "checkpoints" / f"step_{step}" / "simulated" / "rank0.json" for step in (1, 2)}
    for step, folder in ((1, "model-best"), (2, "model")):
        assert (runs[0] / folder / "weights.json").read_text() == saved[step].read_text()
    assert saved[1].read_text() != saved[2].read_text()


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
