"""`logratio evaluate`: what it may be asked of, and that it measures a checkpoint as the run itself did."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from configs.load import RecipeError
from orchestrator.run import DONE
from orchestrator.surface.measuring import evaluating
from orchestrator.surface.measuring.evaluating import Evaluating, Subject
from orchestrator.surface.outcome import write_results
from tests.unit.runs.test_sets import PROMPTS, TRAIN, prompt, summary, with_sets
from tests.unit.simulation import Simulation, recipe
from tests.unit.surface.in_process import invoked


def evaluated(root: Path, saved: Path | None) -> dict[str, Any]:
    made = Simulation(with_sets(root), train=TRAIN, heldout=[prompt(500)], sets=PROMPTS)
    run = Evaluating(made.recipe, made.directory, made.inputs, made.pools, made, made.carrier, saved=saved)
    assert asyncio.run(asyncio.wait_for(run.execute(), 20.0)) == DONE
    return evaluating.results_of(made.directory, Subject(Path("/none"), saved))["sets"]


def test_a_checkpoint_is_measured_as_its_run_measured_it_and_twice_the_same(tmp_path: Path) -> None:
    whole = Simulation(with_sets(tmp_path / "run"), train=TRAIN, heldout=[prompt(500)], sets=PROMPTS)
    assert whole.go() == DONE
    evaluation = summary(tmp_path / "run")["evaluation"]
    last = {"heldout": evaluation["after"]} | {name: one["after"] for name, one in evaluation["sets"].items()}
    saved = tmp_path / "run" / "sim" / "checkpoints" / "step_6"
    assert evaluated(tmp_path / "a", saved) == evaluated(tmp_path / "b", saved) == last
    before = evaluated(tmp_path / "c", None)
    assert before["text"] == evaluation["sets"]["text"]["before"] != last["text"]
    assert not (tmp_path / "a" / "sim" / "checkpoints").exists() and not (tmp_path / "a" / "sim" / "model").exists()


def test_a_subject_is_a_model_a_checkpoint_or_a_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is no model, checkpoint or run"):
        evaluating.subject_of(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert evaluating.subject_of(model) == Subject(model)
    with pytest.raises(RecipeError, match="is of no run; say --recipe"):
        _ = evaluating.subject_of(model).own_recipe
    whole = Simulation(with_sets(tmp_path), train=TRAIN, heldout=[], sets=PROMPTS)
    assert whole.go() == DONE
    run = tmp_path / "sim"
    saved = run / "checkpoints" / "step_6"
    for named in (run, saved):
        assert evaluating.subject_of(named) == Subject(Path("/none"), saved, run)
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "config.json").write_text("{}")
    assert evaluating.subject_of(run) == Subject(run / "model", run=run)
    (saved / "state.json").write_text("{}")
    with pytest.raises(RecipeError, match="is no whole checkpoint"):
        evaluating.subject_of(saved)


def test_the_recipe_of_an_evaluation_keeps_the_start_and_has_the_model_as_its_student(tmp_path: Path) -> None:
    trained = with_sets(tmp_path, checkpoint={"best": {"metric": "maths.pass@1"}})
    found = evaluating.recipe_for(trained, Subject(Path("/other")))
    assert (found.models["student"].path, found.models["start"].path) == ("/other", "/none")
    assert found.checkpoint.best is None and found.run.name.startswith("sim.evaluate-")
    with pytest.raises(RecipeError, match="no held-out prompts"):
        evaluating.recipe_for(recipe(tmp_path), Subject(Path("/other")))
    (tmp_path / "state.json").write_text(json.dumps({"ranks": 2}))
    with pytest.raises(RecipeError, match=r"learner\.ranks: 1, but .* was saved by 2"):
        evaluating.recipe_for(trained, Subject(Path("/other"), tmp_path))


def test_results_are_a_table_and_a_file(tmp_path: Path) -> None:
    sets = {"maths": {"samples": 4, "pass@1": 0.25, "reverse_kl": None, "intervals": {"pass@1": [0.1, 0.5]}}}
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    console.print(evaluating.table_of(sets))
    text = console.export_text()
    assert "pass@1" in text and "0.25" in text and "0.1 to 0.5" in text and "reverse_kl" not in text
    write_results({"sets": sets}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["sets"] == sets
    with pytest.raises(RecipeError, match=r"--out .* cannot be written"):
        write_results({}, tmp_path / "no" / "r.json")


def test_a_model_is_measured_by_the_command_on_the_sets_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are those of the untrained weights, which the simulated learner draws from the run's seed."""
    for name, last in (("start", 1.0), ("trained", 3.0)):
        (folder := tmp_path / name).mkdir()
        (folder / "config.json").write_text("{}")
        save_file({"w": torch.tensor([1.0, 1.0, 1.0, last])}, folder / "model.safetensors")
    asked = with_sets(tmp_path, models={"student": {"path": str(tmp_path / "start")}})
    written = asked.model_dump(mode="json") | {"data": {"prompts": "/none", "heldout": "/none"}}
    written["models"].pop("start", None)
    (file := tmp_path / "recipe.yaml").write_text(json.dumps(written))
    out = tmp_path / "results.json"
    command = ["evaluate", str(tmp_path / "trained"), "--recipe", str(file), "--out", str(out)]
    ended = invoked(monkeypatch, *command, heldout=[prompt(500)], sets=PROMPTS)
    assert ended.exit_code == 0, ended.output or ended.exception
    found = json.loads(out.read_text())
    whole = Simulation(asked, train=TRAIN, heldout=[prompt(500)], sets=PROMPTS)
    assert whole.go() == DONE
    evaluation = summary(tmp_path)["evaluation"]
    before = {"heldout": evaluation["before"]} | {name: one["before"] for name, one in evaluation["sets"].items()}
    assert found["sets"] == before and found["model"] == str(tmp_path / "trained")
    assert found["movement"]["weights_changed"] == 0.25
    assert "pass@1" in ended.output and "weights against" in ended.output
