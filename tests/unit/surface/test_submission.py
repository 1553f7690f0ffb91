"""A job that is submitted again: it goes on, stays as it is, waits for a person, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.hardware import resolve_dtypes
from configs.load import dump_recipe, load_recipe, with_swaps
from configs.refusal import RecipeError
from configs.schema import Recipe
from orchestrator.surface.submission import (
    Standing,
    forget_stop,
    mark_stopped,
    recorded_recipe,
    resumed_as,
    run_directory,
    same_recipe,
    standing,
)


@pytest.fixture
def tree(models: dict[str, Path], prompts: dict[str, Path]) -> dict[str, Any]:
    return {
        "run": {"name": "mine", "steps": 4},
        "models": {"student": {"path": str(models["student"])}, "teacher": {"path": str(models["teacher"])}},
        "data": {"prompts": str(prompts["train"])},
        "batch": {"prompts_per_step": 4},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher"},
        "learner": {"optimizer": {"lr": 0.01}},
    }


@pytest.fixture
def begun(tree: dict[str, Any], tmp_path: Path) -> Path:
    (directory := tmp_path / "mine").mkdir()
    (directory / "recipe.yaml").write_text(dump_recipe(recorded(tree, tmp_path)))
    return directory


def loaded(tree: dict[str, Any], folder: Path) -> Recipe:
    (file := folder / "submitted.yaml").write_text(yaml.safe_dump(tree))
    return load_recipe(file)


def recorded(tree: dict[str, Any], folder: Path) -> Recipe:
    """What a run writes of a submitted recipe on a machine without bf16."""
    return resolve_dtypes(loaded(tree, folder), cpu_has_bf16=False)


def test_a_run_stands_by_its_files(begun: Path, tmp_path: Path) -> None:
    assert standing(tmp_path / "none") is Standing.NEW
    assert standing(begun) is Standing.UNFINISHED
    (begun / "summary.json").write_text(json.dumps({"exit": 1}))
    assert standing(begun) is Standing.UNFINISHED
    mark_stopped(begun)
    assert standing(begun) is Standing.STOPPED
    (begun / "summary.json").write_text(json.dumps({"exit": 0}))
    assert standing(begun) is Standing.DONE
    (begun / "summary.json").write_text('{"exit": ')  # cut short by a kill
    assert standing(begun) is Standing.STOPPED
    forget_stop(begun)
    forget_stop(begun)
    assert standing(begun) is Standing.UNFINISHED


def test_the_same_recipe_goes_on_with_its_swaps(begun: Path, tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = recorded_recipe(begun)
    swapped = with_swaps(recipe, 3, {"teacher": str(tmp_path / "other")})
    (begun / "recipe.yaml").write_text(dump_recipe(swapped))
    assert same_recipe(begun, loaded(tree, tmp_path)) == swapped


def test_another_recipe_is_refused_with_its_keys(begun: Path, tree: dict[str, Any], tmp_path: Path) -> None:
    other = loaded(tree | {"run": tree["run"] | {"steps": 9}, "max_staleness": 1}, tmp_path)
    with pytest.raises(RecipeError, match=r"run\.steps was 4, now 9; max_staleness was 0, now 1\. Choose another"):
        same_recipe(begun, other)
    models = tree["models"] | {"teacher": tree["models"]["teacher"] | {"swaps": {2: str(tmp_path)}}}
    with pytest.raises(RecipeError, match=r"models\.teacher\.swaps\.2 was None, now "):
        same_recipe(begun, loaded(tree | {"models": models}, tmp_path))


def test_a_dtype_left_open_is_what_the_first_machine_made_of_it(
    begun: Path, tree: dict[str, Any], tmp_path: Path
) -> None:
    (begun / "recipe.yaml").write_text(dump_recipe(resolve_dtypes(loaded(tree, tmp_path), cpu_has_bf16=True)))
    assert same_recipe(begun, loaded(tree, tmp_path)).learner.dtype == "bfloat16"
    asked = tree | {"learner": tree["learner"] | {"dtype": "float32"}}
    with pytest.raises(RecipeError, match=r"learner\.dtype was 'bfloat16', now 'float32'"):
        same_recipe(begun, loaded(asked, tmp_path))


def test_paths_follow_the_working_directory_of_a_job(
    begun: Path, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray unpacks a working directory that changed, by a comment say, into another folder."""
    first, second = tmp_path / "_ray_pkg_0a1b" / "configs", tmp_path / "_ray_pkg_2c3d" / "configs"
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "prompts.jsonl").write_text('{"prompt": "why"}\n')
    local = tree | {"data": {"prompts": "prompts.jsonl"}}
    (begun / "recipe.yaml").write_text(dump_recipe(recorded(local, first)))
    submitted = loaded(local, second)
    monkeypatch.chdir(second.parent)
    assert same_recipe(begun, submitted).data.prompts == str(second / "prompts.jsonl")
    assert recorded_recipe(begun).data.prompts == str(second / "prompts.jsonl")
    elsewhere = tree | {"data": {"prompts": str(tmp_path / "prompts.jsonl")}}
    with pytest.raises(RecipeError, match=r"data\.prompts was "):
        same_recipe(begun, loaded(elsewhere, tmp_path))


def test_a_run_in_a_folder_that_holds_a_recipe_resumes_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("run: {name: live, steps: 1}\n")
    assert resumed_as(tmp_path / "live") == "live"
    (tmp_path / "recipe.yaml").write_text("stages: {sft: {run: {steps: 1}}}\n")
    assert resumed_as(tmp_path / "live-01-sft") == tmp_path.name


def test_a_relative_root_is_refused_in_a_ray_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is gone with the job."""
    monkeypatch.delenv("LOGRATIO_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run_directory("mine", "runs") == tmp_path / "runs" / "mine"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(RecipeError, match=r"^run\.root: runs is relative, .*; set an absolute run\.root$"):
        run_directory("mine", "runs")
    assert run_directory("mine", "/shared") == Path("/shared/mine")
    monkeypatch.setenv("LOGRATIO_RUNS", "/storage")
    assert run_directory("mine", "runs") == Path("/storage/mine")
