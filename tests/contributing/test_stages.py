"""docs/stages.md: its example runs, and the ready ones are on the page, valid, and fit two cores."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import load_recipe, load_tree
from configs.pipeline import Pipeline, parse_pipeline, shadowed
from orchestrator.cli import app
from orchestrator.pools.layout import demands
from tests.contributing.pages import ROOT
from tests.unit.surface.staged import server

PAGE = ROOT / "docs" / "stages.md"
TEXT = PAGE.read_text()
READY = sorted((ROOT / "configs" / "pipelines").glob("*.yaml"))


def examples(kind: str = "") -> list[str]:
    return [text for of, text in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S) if of == kind]


def commands() -> list[list[str]]:
    lines = "".join(examples()).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(".venv/bin/logratio")]


def recipes(pipeline: Pipeline) -> list[Any]:
    return [pipeline.recipe(stage, "/runs/x", lambda made: None) for stage in pipeline.stages]


def test_the_example_is_a_pipeline_with_a_branch() -> None:
    (text,) = examples("yaml")
    pipeline = parse_pipeline(yaml.safe_load(text))
    assert [stage.run for stage in pipeline.stages] == ["mine-01-sft", "mine-02-rl", "mine-03-opd"]
    assert {model: str(made) for model, made in pipeline.stages[2].uses.items()} == {
        "student": "stage:sft",
        "teacher": "stage:rl",
    }
    assert [recipe.run.steps for recipe in recipes(pipeline)] == [40, 60, 40]


def test_the_example_runs_and_is_exported_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On simulated members, with shorter stages; `rl` also keeps its best for `--best`."""
    monkeypatch.setenv("LOGRATIO_RUNS", str(tmp_path))
    (file := tmp_path / "pipeline.yaml").write_text(examples("yaml")[0])
    short = [f"stages.{name}.run.steps=3" for name in ("sft", "rl", "opd")]
    best = "stages.rl.checkpoint={best: {metric: heldout.reward_mean}}"
    mine, ends = tmp_path / "mine", dict[str, Any]()
    with server(tmp_path) as logratio:
        done = logratio("run", file, *short, best, "evaluate.every=1", "metrics.trackers=[]")
        assert done.code == 0, done.output
        for number, words in enumerate(words for words in commands() if words[0] == "export"):
            out = tmp_path / f"out{number}"
            ends[" ".join(words[2:])] = (logratio(*(out if word == "out" else word for word in words)), out)
    runs = [line.split()[0] for line in TEXT.splitlines() if line.startswith("  mine-")]
    assert runs == [f"mine-0{n}-{name}/" for n, name in enumerate(("sft", "rl", "opd"), 1)]
    models = [load_recipe(mine / run / "recipe.yaml").models for run in runs]
    begins = [models[0]["student"], models[1]["student"], models[2]["student"], models[2]["teacher"]]
    sft, rl = (str(mine / run / "model") for run in runs[:2])
    assert [model.path for model in begins] == ["/models/student", sft, sft, rl]

    last, of_best, of_step = ends["out"], ends["out --best"], ends["out --checkpoint 50"]
    for (ended, out), made in ((last, mine / runs[2] / "model"), (of_best, mine / runs[1] / "model-best")):
        assert ended.code == 0, ended.output
        assert (out / "weights.json").read_text() == (made / "weights.json").read_text()
    assert of_step[0].code == 2 and "no whole checkpoint of that step; there are: [" in of_step[0].output


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_a_ready_one_is_on_the_page_and_fits_two_cores(file: Path) -> None:
    assert f"[`{file.stem}`](../configs/pipelines/{file.name})" in TEXT
    pipeline = parse_pipeline(load_tree(file))
    assert pipeline.name == file.stem and pipeline.stages[-1].uses, "the last stage goes on from an earlier one"
    for recipe in recipes(pipeline):
        assert sum(demand.cpus for demand in demands(recipe)) <= 2.0, recipe.run.name


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command)[:60])
def test_its_commands_exist_and_its_overrides_are_taken(command: list[str]) -> None:
    """An override that every stage hides would do nothing."""
    known = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}
    assert command[0] in known
    files = [word for word in command if word.startswith("configs/")]
    for file in files:
        overrides = [word for word in command[2:] if "=" in word]
        pipeline = parse_pipeline(load_tree(ROOT / file, overrides))
        assert all(recipe.learner.ranks == 2 and recipe.rollout.members == 4 for recipe in recipes(pipeline))
        hidden = {line.partition(":")[0] for line in shadowed(pipeline, overrides)}
        made = {f"models.{model}.path" for stage in pipeline.stages for model in stage.uses}
        assert hidden <= made, "of the stages that begin with what an earlier one made"
