"""`logratio check` of the ready pipelines, on the tests' models: each stage is checked, before any model is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import RecipeError, load_tree
from orchestrator.surface.pipelines import commands
from tests.contributing.test_stages import READY


def checked(file: Path, models: dict[str, Path], prompts: dict[str, Path], root: Path, *more: str) -> None:
    tree = load_tree(file)
    answered = [
        f"stages.{name}.data.prompts={prompts['data']}" for name, part in tree["stages"].items() if "data" in part
    ]
    sets = tree.get("evaluate", {}).get("sets", {})
    overrides = [
        f"run.root={root}",
        *(f"evaluate.sets.{name}.prompts={prompts['heldout']}" for name in sets),
        *(f"models.{name}.path={models[name]}" for name in tree["models"]),
        *(f"models.{name}.{key}" for name in tree["models"] for key in ("system=null", "prompt='{prompt}'")),
        f"data.prompts={prompts['data']}",
        f"data.heldout={prompts['heldout']}",
        *answered,
        *more,
    ]
    commands.check(load_tree(file, overrides), overrides, False, None)


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_a_ready_pipeline_passes(
    file: Path, models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked(file, models, prompts, tmp_path)
    said = capsys.readouterr().out
    stages = [*load_tree(file)["stages"]]
    for number, name in enumerate(stages, 1):
        assert f"stage {number} of {len(stages)}, {name}: " in said
    assert said.count("prompts, 4 held out") == len(stages) and "is stage:" in said


def test_a_fault_of_a_later_stage_is_found_and_named(
    models: dict[str, Path], prompts: dict[str, Path], tmp_path: Path
) -> None:
    (file,) = (file for file in READY if file.stem == "sft_rl_opd")
    with pytest.raises(RecipeError, match=r"^stages\.opd: .*none\.jsonl"):
        checked(file, models, prompts, tmp_path, f"stages.opd.data.heldout={tmp_path / 'none.jsonl'}")
    foreign = models | {"teacher": models["foreign"]}
    with pytest.raises(RecipeError, match=r"^stages\.both: models\.teacher\.path: its tokenizer differs"):
        checked(READY[0], foreign, prompts, tmp_path)
