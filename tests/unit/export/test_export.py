"""An exported model loads, and its card says what the run's files say and no more."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from configs.load import RecipeError, dump_recipe, load_recipe
from orchestrator.surface.export.export import export
from tests.unit.recipes import loaded


@pytest.fixture
def run(models: dict[str, Path], tmp_path: Path) -> Path:
    """A run that is done; its base has a card and a licence."""
    base = shutil.copytree(models["student"], tmp_path / "bases" / "tiny-base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Tiny\n")
    (base / "LICENSE").write_text("the words of the licence\n")
    return finished(tmp_path / "runs" / "mine", base, models["teacher"])


def finished(directory: Path, student: Path, trained: Path, **summary: Any) -> Path:
    changes = {
        "run.name": directory.name,
        "run.root": str(directory.parent),
        "models.student.path": str(student),
        "data.prompts": str(directory.parent / "secret" / "questions.jsonl"),
    }
    shutil.copytree(trained, directory / "model")
    (directory / "recipe.yaml").write_text(dump_recipe(loaded(changes)))
    evaluation = {
        "before": {"reverse_kl": 1.25, "kl_support": "full", "reward_mean": None},
        "after": {"reverse_kl": 0.5, "kl_support": "full", "reward_mean": 1.0},
        "steps": [],
        "sets": {"maths": {"before": {"pass@1": 0.125}, "after": {"pass@1": 0.75}, "steps": []}},
    }
    (directory / "summary.json").write_text(json.dumps({"exit": 0, "evaluation": evaluation} | summary))
    return directory


def test_it_loads_with_transformers_and_is_the_trained_model(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    out = tmp_path / "out"
    loads = {"local_files_only": True, "trust_remote_code": False}
    kind: Any = AutoModelForCausalLM
    model, info = kind.from_pretrained(out, output_loading_info=True, use_safetensors=True, **loads)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.tensor([[5, 6, 7]])
    trained = kind.from_pretrained(run / "model", **loads)
    assert torch.equal(model(ids).logits, trained(ids).logits)
    assert AutoTokenizer.from_pretrained(out, **loads).chat_template
    assert GenerationConfig.from_pretrained(out).eos_token_id is not None
    assert not (tmp_path / "out.partial").exists() and list(out.glob("*.safetensors"))
    umask = os.umask(0o022)
    os.umask(umask)
    for path in out.rglob("*"):  # safetensors ignores the umask
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_the_card_names_base_licence_data_and_numbers_and_no_folder(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    said = card.data.to_dict()
    assert (said["license"], said["base_model"], said["library_name"]) == ("apache-2.0", "tiny-base", "transformers")
    assert "questions.jsonl" in card.text and "| reverse_kl | 1.25 | 0.5 |" in card.text
    assert "| maths: pass@1 | 0.125 | 0.75 |" in card.text
    assert "reward_mean" not in card.text.split("## Training")[0], "it was not measured before"
    assert str(tmp_path) not in str(card) and "secret" not in str(card)
    assert (tmp_path / "out" / "LICENSE").read_text() == "the words of the licence\n"


def test_a_licence_that_no_file_names_is_not_made_up(models: dict[str, Path], tmp_path: Path) -> None:
    for number, head in enumerate((None, "no front matter", "---\n: [\n---\n", "---\nlicense: [a, b]\n---\n")):
        base = shutil.copytree(models["student"], tmp_path / f"base{number}")
        if head is not None:
            (base / "README.md").write_text(head)
        export(finished(tmp_path / f"run{number}", base, models["student"]), tmp_path / f"out{number}")
        card = ModelCard.load(tmp_path / f"out{number}" / "README.md")
        assert card.data.to_dict()["license"] == "unknown" and "look it up before you share" in card.text


def test_the_card_of_a_chain_has_all_of_its_runs_and_the_base_of_the_first(run: Path, tmp_path: Path) -> None:
    second = finished(tmp_path / "runs" / "second", run / "model", run / "model")
    export(second, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict()["base_model"] == "tiny-base"
    assert card.text.index("### mine") < card.text.index("### second")


def test_the_card_holds_the_recipe_of_each_run_without_defaults_and_folders(run: Path, tmp_path: Path) -> None:
    second = finished(tmp_path / "runs" / "second", run / "model", run / "model")
    export(second, tmp_path / "out")
    training = ModelCard.load(tmp_path / "out" / "README.md").text.split("## Training", 1)[1]
    found = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", training, re.M | re.S)]
    assert [recipe["run"]["name"] for recipe in found] == ["mine", "second"]
    assert [recipe["models"]["student"]["path"] for recipe in found] == ["tiny-base", "model"]
    whole = load_recipe(run / "recipe.yaml").model_dump(mode="json", exclude_defaults=True)
    assert found[0]["data"] == whole["data"] | {"prompts": "questions.jsonl"} and "root" not in found[0]["run"]
    same = ("objective", "batch", "sampling", "learner")
    assert {key: found[0].get(key) for key in same} == {key: whole.get(key) for key in same}


def test_the_best_weights_are_exported_where_they_are_asked_for(
    run: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(models["student"], run / "model-best")
    summary = json.loads((run / "summary.json").read_text())
    summary["evaluation"]["steps"] = [{"step": step, "reverse_kl": 0.25 * step} for step in (1, 2, 3)]
    summary |= {"steps": 4, "best": {"metric": "heldout.reverse_kl", "mode": "min", "step": 1, "value": 0.25}}
    (run / "summary.json").write_text(json.dumps(summary))
    assert export(run, tmp_path / "best", best=True) == "its best weights by a held-out metric"
    assert export(run, tmp_path / "last") == "its last weights"
    for out, folder, other, words, measured in (
        ("best", "model-best", "model", "its best weights by a held-out metric.", ["| reverse_kl | 1.25 | 0.25 |"]),
        (
            "last",
            "model",
            "model-best",
            "its last weights.",
            ["| reverse_kl | 1.25 | 0.5 |", "| maths: pass@1 | 0.125 | 0.75 |"],
        ),
    ):
        (weights,) = (file.name for file in (tmp_path / out).glob("*.safetensors"))
        written = (tmp_path / out / weights).read_bytes()
        assert written == (run / folder / weights).read_bytes() != (run / other / weights).read_bytes()
        card = (tmp_path / out / "README.md").read_text()
        assert f"from **tiny-base**: {words}" in card
        assert re.findall(r"^\| .*\d.* \|$", card, re.M) == measured, "of these weights"


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    refusals: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("taken", {}, "is there already"),
        ("file", {}, "is there already"),
        ("out", {"best": True}, "has no model-best/; set checkpoint.best"),
        ("out", {"step": 3}, r"--checkpoint 3: .* has no whole checkpoint of that step; there are: \[\]"),
        ("out", {"step": 3, "best": True}, "give one of them"),
        ("file/out", {}, "cannot be written"),
    )
    for out, arguments, message in refusals:
        with pytest.raises(RecipeError, match=message):
            export(run, tmp_path / out, **arguments)
    shutil.rmtree(run / "model")
    with pytest.raises(RecipeError, match=r"has no model/; let it end, or name a checkpoint"):
        export(run, tmp_path / "out")
    assert not list(tmp_path.glob("out*")) and (tmp_path / "taken" / "mine.txt").read_text() == "mine"
