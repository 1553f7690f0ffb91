"""`logratio compare` on written run directories, whose true difference is known."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from configs.refusal import RecipeError
from orchestrator.cli import app
from orchestrator.surface.research.comparing import Compared, arms_of, compare
from orchestrator.surface.research.curves import AXES
from orchestrator.surface.research.runs import read_run
from tests.unit.research.written_runs import Written

METRIC = "maths.pass@1"
SLOW, FAST = {0: 0.3, 10: 0.4, 20: 0.5}, {0: 0.3, 10: 0.7, 20: 0.8}


def two_arms(root: Path, seeds: int = 3, slow: Any = None, fast: Any = None, **changes: Any) -> list[Path]:
    runs = [Written(f"slow-{s}", s, 0.1, slow or SLOW).to(root, **changes) for s in range(seeds)]
    return runs + [Written(f"fast-{s}", s, 0.2, fast or FAST).to(root, **changes) for s in range(seeds)]


def compared(runs: list[Path], metric: str = METRIC, *axes: str) -> list[Compared]:
    arms, _ = arms_of([read_run(run) for run in runs])
    return list(compare(arms, [metric], axes or ("steps",)))


def test_the_difference_is_found_at_equal_steps(tmp_path: Path) -> None:
    rows = {row.at: row for row in compared(two_arms(tmp_path))}
    assert list(rows) == [0.0, 10.0, 20.0, "mean"]
    for at in (10.0, 20.0, "mean"):
        assert rows[at].found.differs and rows[at].found.mean == pytest.approx(0.3, abs=0.15)
    assert not rows[0.0].found.differs, "both arms start alike"
    assert (rows[20.0].found.seeds, rows[20.0].found.prompts) == (3, 30)
    assert rows[20.0].arm == "learner.optimizer.lr=0.2"
    assert rows[20.0].other - rows[20.0].first == pytest.approx(rows[20.0].found.mean)  # type: ignore[operator]


def test_a_difference_is_at_the_same_budget_and_not_at_the_same_step(tmp_path: Path) -> None:
    """An arm that samples twice the tokens a step is compared at half of its steps."""
    curve = {0: 0.0, 10: 0.5, 20: 1.0}
    runs = [Written(f"a-{s}", s, 0.1, curve).to(tmp_path) for s in (0, 1)]
    runs += [Written(f"b-{s}", s, 0.2, curve, tokens=200, gpus=2, kl=0.005).to(tmp_path) for s in (0, 1)]
    ends = {row.axis: row for row in compared(runs, METRIC, *AXES) if row.at != "mean"}
    assert [row.at for row in ends.values()] == [20.0, 2000.0, 80.0, pytest.approx(0.1)]
    assert ends["steps"].found.mean == 0.0
    assert ends["tokens"].found.mean == pytest.approx(-0.5, abs=0.15)
    assert ends["gpu_seconds"].found.mean == pytest.approx(-0.5, abs=0.15)
    assert ends["kl"].found.mean == pytest.approx(0.5, abs=0.15)


def test_a_metric_of_whole_runs_is_compared_over_seeds(tmp_path: Path) -> None:
    runs = two_arms(tmp_path)
    for metric in ("maths.entropy", "reward_mean"):
        row = compared(runs, metric)[-1]
        assert row.found.prompts is None and row.found.seeds == 3 and row.found.mean is not None
        assert row.found.mean > 0 and row.found.differs


def test_of_one_seed_it_says_that_it_cannot(tmp_path: Path) -> None:
    row = compared(two_arms(tmp_path, seeds=1))[-1]
    assert row.found.low is None and row.found.mean is not None
    assert "one seed" in str(row.found.why)


def test_runs_of_different_length_meet_where_both_have_been(tmp_path: Path) -> None:
    rows = compared(two_arms(tmp_path, fast={0: 0.3, 10: 0.7}), METRIC, "steps", "tokens")
    assert [row.at for row in rows if row.axis == "steps"] == [0.0, 10.0, "mean"]
    assert [row.at for row in rows if row.axis == "tokens"] == [0.0, 250.0, 500.0, 750.0, 1000.0, "mean"]


def test_evaluations_that_are_missing_are_no_common_ones(tmp_path: Path) -> None:
    runs = two_arms(tmp_path)
    file = runs[0] / "metrics.jsonl"
    kept = [line for line in file.read_text().splitlines() if '"step 10"' not in line]
    file.write_text("\n".join([*kept, '{"broken', "7", '{"evaluation": "maths"}']))
    assert [row.at for row in compared(runs)] == [0.0, 20.0, "mean"]


def test_without_any_evaluation_it_says_so(tmp_path: Path) -> None:
    runs = two_arms(tmp_path)
    (runs[1] / "metrics.jsonl").unlink()
    (row,) = compared(runs)
    assert "no evaluation was found of seeds [1]" in str(row.found.why)


def test_without_the_recorded_responses_the_lines_are_compared(tmp_path: Path) -> None:
    runs = two_arms(tmp_path)
    for file in (runs[0] / "samples").glob("eval_after*"):
        file.write_bytes(file.read_bytes()[:100])  # cut short by a crash
    row = compared(runs)[-1]
    assert row.found.prompts is None and row.found.differs


def test_a_run_that_does_not_say_what_it_spent_is_compared_by_steps_alone(tmp_path: Path) -> None:
    runs = two_arms(tmp_path, rollout={"members": 1, "resources": {"gpus": 0}})
    file = runs[0] / "metrics.jsonl"
    file.write_text(file.read_text().replace('"tokens_generated": 100', '"tokens_generated": null'))
    rows = {row.axis: row for row in compared(runs, METRIC, *AXES)}
    assert rows["steps"].found.differs
    assert "GPU" in str(rows["gpu_seconds"].found.why) and "tokens" in str(rows["tokens"].found.why)


def test_a_resumed_run_counts_no_step_twice(tmp_path: Path) -> None:
    run = Written("a", 0, 0.1, SLOW).to(tmp_path)
    before = read_run(run).curve(METRIC)
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:15], *lines[9:]]))  # steps 10 to 15 again
    assert read_run(run).curve(METRIC) == before


@pytest.mark.parametrize("common", [0, 1])
def test_seeds_that_one_arm_lacks_are_not_paired(tmp_path: Path, common: int) -> None:
    runs = [Written(f"a-{s}", s, 0.1, SLOW).to(tmp_path) for s in (0, 1)]
    runs += [Written(f"b-{s}", s, 0.2, FAST).to(tmp_path) for s in (2 - common, 3)]
    row = compared(runs)[-1]
    assert ("one seed" if common else "no common seed: the first arm has [0, 1]") in str(row.found.why)


def test_other_prompts_are_not_paired(tmp_path: Path) -> None:
    """A set whose prompts read otherwise: the runs' own numbers are compared."""
    runs = [Written(f"a-{s}", s, 0.1, SLOW).to(tmp_path) for s in (0, 1, 2)]
    runs += [Written(f"b-{s}", s, 0.2, FAST, prompts=20).to(tmp_path) for s in (0, 1, 2)]
    assert compared(runs)[-1].found.prompts == 20


def test_runs_of_one_recipe_are_no_two_arms(tmp_path: Path) -> None:
    runs = [read_run(Written(f"a-{s}", s, 0.1, SLOW).to(tmp_path)) for s in (0, 1)]
    with pytest.raises(RecipeError, match="nothing but the seed"):
        arms_of(runs)


def test_the_same_seed_twice_is_left_out_by_name(tmp_path: Path) -> None:
    runs = two_arms(tmp_path)
    shutil.copytree(runs[0], tmp_path / "copy")
    _, notices = arms_of([read_run(run) for run in [*runs, tmp_path / "copy"]])
    assert len(notices) == 1 and "copy" in notices[0]


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    two_arms(tmp_path / "runs")
    out = tmp_path / "found.json"
    told = CliRunner().invoke(app, ["compare", str(tmp_path / "runs"), "--metric", METRIC, "--out", str(out), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    assert found == json.loads(out.read_text()) and len(found["arms"]) == 2
    last = found["comparisons"][-1]
    assert math.isfinite(last["difference"]) and {row["axis"] for row in found["comparisons"]} == set(AXES)
    assert "%" in CliRunner().invoke(app, ["compare", str(tmp_path / "runs"), "--metric", METRIC]).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metric", "maths.pass@9"], "does not measure it; it has maths.pass@1"),
        (["--metric", "latin.pass@1"], "does not measure it"),
        (["--metric", "los"], "does not measure it"),
        (["--metric", METRIC, "--against", "money"], "allowed: steps, tokens, gpu_seconds, kl"),
    ],
)
def test_what_it_cannot_compare_is_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    two_arms(tmp_path / "runs", seeds=1)
    told = CliRunner().invoke(app, ["compare", str(tmp_path / "runs"), *arguments])
    assert isinstance(told.exception, RecipeError) and words in str(told.exception)
