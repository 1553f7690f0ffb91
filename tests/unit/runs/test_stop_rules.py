"""Rules that end a run before its last step: when they hold, over a kill, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import RecipeError
from configs.schema import StopRule
from orchestrator.between_steps.stop_rules import StopRules, streak
from orchestrator.preflight.inputs.stop_rules import check_stop_rules
from orchestrator.progress import Progress
from orchestrator.run import DONE
from tests.unit.recipes import loaded, refusal
from tests.unit.simulation import Simulation, crash_at, metrics, recipe, stop_at

FALLS = [{"metric": "reverse_kl", "below": 100.0, "for_steps": 3}]  # holds from the first step on


def summary(root: Path) -> dict[str, Any]:
    return json.loads((root / "sim" / "summary.json").read_text())


@pytest.mark.parametrize(
    ("values", "streaks"),
    [
        ([0.2, 0.05, 0.05, 0.2, 0.05], [0, 1, 2, 0, 1]),
        ([0.05, None, 0.05], [1, 1, 2]),  # what is unknown says nothing
        ([0.1, None], [0, 0]),  # the bound itself is not below it
    ],
)
def test_a_row_is_of_known_values(values: list[float | None], streaks: list[int]) -> None:
    rule, found, so_far = StopRule(metric="reverse_kl", below=0.1, for_steps=2), [], 0
    for value in values:
        found.append(so_far := streak(rule, so_far, value))
    assert found == streaks
    above = StopRule(metric="entropy", above=1.0)
    assert [streak(above, 4, value) for value in (1.5, 1.0, 0.5, None)] == [5, 0, 0, 4]


def test_a_run_ends_as_done_when_a_rule_is_reached(tmp_path: Path) -> None:
    rules = [{"metric": "reward_mean", "above": 1e9}, *FALLS]
    simulation = Simulation(recipe(tmp_path, run={"stop": rules}))
    assert simulation.go() == DONE
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "sim" / "model").is_dir()
    found = summary(tmp_path)
    assert found["exit"] == 0 and found["steps"] == 3 and found["evaluation"]["after"]
    assert found["ended_early"].startswith("reverse_kl below 100 3 times in a row (")
    assert any(n.startswith("the run is done after step 3 of 6: reverse_kl below 100") for n in simulation.notices)


@pytest.mark.parametrize("interrupt", [crash_at, stop_at])
def test_a_row_goes_on_after_a_resume(tmp_path: Path, interrupt: Any) -> None:
    """From the checkpoint of step 2, where two of four values were in the row."""
    settings = recipe(tmp_path, run={"stop": [FALLS[0] | {"for_steps": 4}]}, checkpoint={"every": 2})
    first = Simulation(settings, interrupt(3))
    if interrupt is crash_at:
        with pytest.raises(ExceptionGroup):
            first.go()
    else:
        first.go()
    assert Simulation(settings).go() == DONE
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]


def test_an_evaluation_between_steps_may_end_it(tmp_path: Path) -> None:
    rule = {"metric": "heldout.reverse_kl", "below": 100.0, "for_steps": 2}
    assert Simulation(recipe(tmp_path, run={"stop": [rule]}, evaluate={"every": 2})).go() == DONE
    assert summary(tmp_path)["steps"] == 4


def test_the_last_step_is_no_early_end(tmp_path: Path) -> None:
    assert Simulation(recipe(tmp_path, run={"stop": FALLS, "steps": 3})).go() == DONE
    assert summary(tmp_path)["ended_early"] is None


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"metric": "loss"}, "needs one of below and above"),
        ({"metric": "loss", "below": 1.0, "above": 2.0}, "needs one of below and above"),
        ({"below": 1.0}, "run.stop.0.metric: missing"),
        ({"metric": "loss", "below": 1.0, "for_steps": 0}, "0 is wrong"),
        ({"metric": "loss", "below": float("nan")}, "is wrong"),
    ],
)
def test_a_rule_without_meaning_is_refused(rule: dict[str, Any], message: str) -> None:
    assert message in refusal({"run.stop": [rule]})


def test_a_metric_that_is_not_there_is_refused() -> None:
    heldout = {"data.heldout": "/h.jsonl", "evaluate.every": 2}
    check_stop_rules(loaded(heldout | {"run.stop": [{"metric": "heldout.entropy", "below": 1.0}]}))
    for changes, name, message in (
        ({}, "reverse_kll", r"run.stop.0.metric: 'reverse_kll' is no metric; allowed: loss, reverse_kl, "),
        ({}, "kl_support", "is no metric"),
        ({"data.heldout": "/h.jsonl"}, "heldout.entropy", "is not measured between steps; set evaluate.every"),
        (heldout, "heldout.entropie", r"is no metric; allowed: reverse_kl, "),
        (heldout, "maths.entropy", r"names no held-out set; allowed: \['heldout'\]"),
        ({}, "heldout.entropy", r"names no held-out set; allowed: \[\]"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_stop_rules(loaded(changes | {"run.stop": [{"metric": name, "below": 1.0}]}))


def test_evaluations_of_named_sets_count_too() -> None:
    progress, why = Progress(), []
    rule = {"metric": "maths.pass@1", "above": 0.5, "for_steps": 2}
    rules = StopRules(loaded({"run.stop": [rule]}), progress, why.append)
    for value, ends in ((0.75, 0), (0.25, 0), (0.75, 0), (0.875, 1)):
        before = rules.evaluations()
        lines = progress.evaluations["sets"].setdefault("maths", {"before": None, "steps": [], "after": None})["steps"]
        lines.append({"step": len(lines) + 1, "pass@1": value})
        rules.measured(before)
        assert len(why) == ends
    assert why == ["maths.pass@1 above 0.5 2 times in a row (0.875)"]
