"""A recipe with stages: what each stage's recipe is, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import RecipeError, load_recipe, load_tree
from configs.pipeline import Made, Pipeline, dump_pipeline, parse_pipeline, shadowed
from tests.unit.recipes import SMALLEST, tree, write

BEST = {"best": {"metric": "heldout.entropy"}}
SFT = {"objective": {"prefix": "dataset", "target": "data", "reverse_weight": 0.0}}
OPD = {"models": {"student": {"path": "stage:sft"}, "teacher": {"path": "/big"}}, "objective": {"target": "teacher"}}


def staged(stages: Any, **common: Any) -> dict[str, Any]:
    whole = tree({"models.teacher": None, "objective": None, **common})
    del whole["models"]["teacher"], whole["objective"]
    return whole | {"stages": stages}


def place(made: Made) -> str | None:
    """Only `sft` is done."""
    return f"/runs/{made}" if made.stage == "sft" else None


def of(pipeline: Pipeline, name: str) -> Any:
    (stage,) = (stage for stage in pipeline.stages if stage.name == name)
    return pipeline.recipe(stage, "/runs/r", place)


def test_a_stage_has_the_common_keys_and_its_own_over_them() -> None:
    pipeline = parse_pipeline(
        staged({"sft": SFT, "opd": OPD | {"run": {"steps": 9}, "batch": {"samples_per_prompt": 4}}})
    )
    sft, opd = of(pipeline, "sft"), of(pipeline, "opd")
    assert (sft.run.name, sft.run.root, sft.run.stage, sft.run.steps) == ("r-01-sft", "/runs/r", "sft", 2)
    assert (opd.run.name, opd.run.steps, opd.batch.samples_per_prompt) == ("r-02-opd", 9, 4)
    assert opd.batch.prompts_per_step == sft.batch.prompts_per_step
    assert not sft.objective.teachers and list(opd.objective.teachers) == ["teacher"]


def test_a_stage_starts_from_what_an_earlier_one_made_and_so_does_its_teacher() -> None:
    stages = {
        "sft": SFT,
        "other": SFT,
        "rl": {"models": {"student": {"path": "stage:other"}}, "checkpoint": BEST, **SFT},
        "opd": {
            "models": {"student": {"path": "stage:rl/best"}, "teacher": {"path": "stage:sft"}},
            "objective": {"target": "teacher"},
        },
    }
    pipeline = parse_pipeline(staged(stages))
    start = tree({})["models"]["student"]["path"]
    assert of(pipeline, "rl").models["student"].path == start, "not there yet: the start has the same shapes"
    opd = of(pipeline, "opd")
    assert (opd.models["student"].path, opd.models["teacher"].path) == (start, "/runs/stage:sft")
    assert pipeline.stages[3].uses == {"student": Made("rl", best=True), "teacher": Made("sft")}


def test_it_is_written_and_read_back_to_the_same(tmp_path: Path) -> None:
    """Paths are absolute then, and parents and overrides merged; what names a stage stays as it is."""
    write(tmp_path / "base.yaml", {key: value for key, value in staged({}).items() if key != "stages"})
    stages = {"sft": {"data": {"prompts": "sft.jsonl"}, **SFT}, "opd": OPD}
    file = write(tmp_path / "p.yaml", yaml.safe_dump({"extends": "base.yaml", "stages": stages}, sort_keys=False))
    found = parse_pipeline(load_tree(file, ["stages.opd.run.steps=7", "run.seed=3"]))
    assert of(found, "sft").data.prompts == str(tmp_path / "sft.jsonl")
    assert (of(found, "opd").run.steps, of(found, "opd").run.seed) == (7, 3)
    assert found.tree["stages"]["opd"]["models"]["student"]["path"] == "stage:sft"
    text = dump_pipeline(found)
    again = parse_pipeline(load_tree(write(tmp_path / "again.yaml", text)))
    assert again.plain() == found.plain() and again.stages[1].uses == found.stages[1].uses


def test_all_keys_are_there_to_compare_by() -> None:
    one, two = (parse_pipeline(staged({"sft": SFT, "opd": OPD | {"max_staleness": n}})).plain() for n in (0, 1))
    assert one["stages"]["opd"]["models"]["student"]["path"] == "stage:sft"
    assert one["stages"]["sft"] == two["stages"]["sft"] and one["stages"]["opd"] != two["stages"]["opd"]
    swapped = parse_pipeline(staged({"opd2": SFT, "sft": SFT})).plain()
    assert swapped["order"] == ["opd2", "sft"]


def test_an_override_that_a_stage_hides_is_said() -> None:
    pipeline = parse_pipeline(staged({"sft": SFT | {"run": {"steps": 4}}, "opd": OPD}))
    given = [
        "run.steps=2",
        "run.seed=1",
        "stages.sft.run.steps=3",
        "models.student.path=/x",
        "objective={target: none, support: sampled}",
    ]
    assert [line.partition(", with")[0] for line in shadowed(pipeline, given)] == [
        "run.steps: not in sft",
        "models.student.path: not in opd",
        "objective.target: not in sft, opd",
    ]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (None, "stages: None is no mapping; write the name of each stage"),
        ([{"name": "sft"}], "is no mapping"),
        ({}, "stages: {} is no mapping"),
        ("sft", "is no mapping"),
        ({"sft": None}, "stages.sft: None is no mapping; write what differs, or {}"),
        ({"a/b": SFT}, "stages: 'a/b' is no name"),
        ({"../x": SFT}, "is no name"),
        ({1: SFT}, "stages: 1 is no name"),
        ({f"s{i}": SFT for i in range(100)}, "stages: 100 are more than 99"),
        ({"sft": SFT | {"extends": "x.yaml"}}, "stages.sft.extends: is no key of a stage; put it at the top"),
        ({"sft": SFT | {"stages": {}}}, "stages.sft.stages: is no key of a stage; stages do not nest"),
        ({"sft": SFT | {"cluster": {}}}, "stages.sft.cluster: is no key of a stage; all stages share one"),
        ({"sft": SFT | {"run": {"name": "x"}}}, "stages.sft.run.name: follows from the recipe's run.name; remove it"),
        ({"sft": SFT | {"run": {"root": "x"}}}, "stages.sft.run.root: follows"),
        ({"sft": SFT | {"run": 3}}, "stages.sft.run: 3 is no mapping"),
        ({"sft": SFT | {"models": None}}, "stages.sft.models: None is no mapping"),
        ({"sft": SFT | {"run": {"stepz": 3}}}, "stages.sft: run.stepz: unknown key"),
        (
            {"opd": OPD, "sft": SFT},
            "stages.opd: models.student.path: 'stage:sft' is no earlier stage; earlier ones: []",
        ),
        ({"sft": OPD}, "'stage:sft' is no earlier stage"),
        ({"sft": SFT, "b": {"models": {"student": {"path": "stage:"}}}}, "'stage:' is no earlier stage"),
        (
            {"sft": SFT, "b": {"models": {"student": {"path": "stage:sft/first"}}}},
            "stages.b: models.student.path: 'stage:sft/first'; write stage:sft, or stage:sft/best",
        ),
        ({"sft": SFT, "b": {"models": {"student": {"path": "stage:sft/"}}}}, "write stage:sft"),
        (
            {"sft": SFT, "b": SFT | {"models": {"student": {"path": "stage:sft/best"}}}},
            "stages.b: models.student.path: 'stage:sft/best', and sft keeps no best; set stages.sft.checkpoint.best",
        ),
        ({"sft": SFT, "b": OPD | {"models": {"student": {"path": "stage:sft"}}}}, "stages.b: objective.target"),
        (
            {"sft": SFT, "b": {**SFT, "models": {"student": {"swaps": {3: "stage:sft"}}}}},
            "names a stage; a path under `models`",
        ),
    ],
)
def test_what_is_no_pipeline_is_refused(stages: Any, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_pipeline(staged(stages))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (None, "run.name: missing"),
        ({}, "run.name: missing"),
        ([], "run.name: missing"),
        ({"name": 3}, "run.name: missing"),
        ({"name": "../x", "steps": 1}, "run.name: '../x-01-sft' is wrong"),
        ({"name": "x", "steps": 1, "root": 3}, "run.root: 3 is no path"),
        ({"name": "x", "steps": 1, "stage": "sft"}, "run.stage: is set by `stages`"),
    ],
)
def test_its_name_and_folder_are_checked(run: Any, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_pipeline(staged({"sft": SFT}) | {"run": run})
    assert message in str(refused.value)


def test_a_recipe_without_stages_names_none_and_one_with_them_is_no_recipe(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.yaml", SMALLEST)
    with pytest.raises(RecipeError, match=r"models\.teacher\.path: 'stage:sft' is wrong: .*names a stage"):
        load_recipe(plain, ["models.teacher.path=stage:sft"])
    staged_file = write(tmp_path / "staged.yaml", staged({"sft": SFT}))
    with pytest.raises(RecipeError, match="has stages, and one recipe is wanted here"):
        load_recipe(staged_file)
