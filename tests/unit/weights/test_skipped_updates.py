"""A step whose loss or gradient is not finite: its update is skipped and noticed, without version or checkpoint."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from actors.metrics import STEP_METRICS, step_line
from actors.simulated.learner import SimulatedLearner
from actors.wire.jobs import Share
from orchestrator import checkpoint
from orchestrator.run import DONE, STOPPED
from orchestrator.stage import NotFinite
from orchestrator.surface.ending import fail
from orchestrator.surface.outcome import first_of
from orchestrator.surface.report.page import write_report
from orchestrator.weights.skipped_updates import SkippedUpdates
from tests.unit.simulation import (
    EACH,
    GROUPS,
    STEPS,
    Simulation,
    assert_each_once,
    expected_order,
    recipe,
    stop_at,
    trained,
)


def uids_of(step: int) -> list[str]:
    return sorted(uid for name, uid, _ in expected_order() if name == f"step_{step:06d}")


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps whose loss is NaN."""
    steps, evaluate = list[int](), SimulatedLearner.evaluate

    def spoiled(self: SimulatedLearner, share: Share) -> dict[str, Any]:
        read = evaluate(self, share)
        return read | {"loss": math.nan, "reference_kl": math.inf} if share.step in steps else read

    monkeypatch.setattr(SimulatedLearner, "evaluate", spoiled)
    return steps


def strict_lines(root: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (root / "sim" / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_skipped_update_makes_no_version_and_no_checkpoint_and_is_named(
    tmp_path: Path, sick: list[int], staleness: int
) -> None:
    sick[:] = [2, 5]
    saved: list[int] = []
    simulation = Simulation(
        recipe(tmp_path, max_staleness=staleness, checkpoint={"every": 2, "keep": 9}),
        lambda run, line: saved.extend(int(f.name[5:]) for f in (run.directory / "checkpoints").glob("step_?")),
    )
    assert simulation.go() == DONE
    lines = strict_lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["updates_skipped"] for line in lines] == [0, 1, 0, 0, 1, 0]
    assert [line["policy_version"] for line in lines] == [1, 1, 2, 3, 3, 4]
    assert [line["loss"] is None for line in lines] == [False, True, False, False, True, False]
    assert set(saved) == {3, 4}, "step 2 had moved nothing: its checkpoint waits for the next that does"
    assert_each_once(tmp_path)
    summary = json.loads((simulation.directory / "summary.json").read_text())
    batches = {step: [row["uid"] for row in trained(tmp_path, f"step_{step:06d}")] for step in (2, 5)}
    assert {s["step"]: s["uids"] for s in summary["updates_skipped"]} == batches
    said = [text for text in simulation.notices if text.startswith("step 2:")]
    assert len(said) == 1 and batches[2][0] in said[0]
    page = write_report(simulation.directory, lambda ids: "").read_text()
    assert f"step 2 ({batches[2][0]} and {EACH * GROUPS - 1} more)" in page


def test_a_skipped_update_leaves_the_weights_as_they_were(tmp_path: Path, sick: list[int]) -> None:
    """Later steps train as if that batch had made no update."""
    weights: dict[str, bytes] = {}
    for name, steps in (("sound", []), ("sick", [STEPS])):
        sick[:] = steps
        simulation = Simulation(recipe(tmp_path / name, run={"steps": STEPS - 1 + len(steps)}))
        assert simulation.go() == DONE
        (actor,) = simulation.pools.learner.members[0].actors
        weights[name] = actor._weights.tobytes()
    assert weights["sick"] == weights["sound"]


def test_three_in_a_row_end_the_run_and_leave_the_last_checkpoint(tmp_path: Path, sick: list[int]) -> None:
    sick[:] = [3, 4, 5, 6]
    simulation = Simulation(recipe(tmp_path, checkpoint={"every": 1, "keep": 1}))
    with pytest.raises(BaseException) as failure:
        simulation.go()
    error = first_of(failure.value)
    assert isinstance(error, NotFinite)
    assert all(part in str(error) for part in ("learner", "3 to 5", uids_of(3)[0], "learner.optimizer.lr"))
    assert [line["step"] for line in strict_lines(tmp_path)] == [1, 2, 3, 4, 5]
    (folder,) = (simulation.directory / "checkpoints").iterdir()
    assert folder.name == "step_2" and checkpoint.latest(simulation.directory)
    code, said = asyncio.run(fail(simulation.run, failure.value))  # type: ignore[arg-type]
    assert code == 1 and said.startswith(f"the run failed: {error}\n")
    assert json.loads((simulation.directory / "summary.json").read_text())["exit"] == 1


def test_a_resume_keeps_skipped_updates(tmp_path: Path, sick: list[int]) -> None:
    sick[:] = [3, 4, 5]
    assert Simulation(recipe(tmp_path), stop_at(4)).go() == STOPPED
    with pytest.raises(BaseException) as failure:
        Simulation(recipe(tmp_path)).go()
    assert isinstance(first_of(failure.value), NotFinite)


def test_weights_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    """A finite gradient, and a learning rate that makes every weight infinite."""
    simulation = Simulation(recipe(tmp_path, learner={"optimizer": {"lr": 1e39}}))
    with pytest.raises(BaseException) as failure:
        simulation.go()
    error = str(first_of(failure.value))
    assert "step 1" in error and "learner" in error and uids_of(1)[0] in error
    assert not (simulation.directory / "metrics.jsonl").exists() and not list((simulation.directory).glob("model/*"))
    assert checkpoint.highest_version(simulation.directory) == 0


def test_only_three_steps_in_a_row_without_an_update_end_the_run() -> None:
    skips = SkippedUpdates()
    for step, updates, moved in (
        (1, 1, True),
        (2, 2, False),
        (3, 2, False),
        (4, 1, True),
        (5, 2, False),
        (7, 2, False),
    ):
        skips.note(step, updates, moved, ["a"])
    assert [skips.failure(step) for step in range(1, 8)] == [None] * 7
    skips.note(6, 2, False, ["b"])
    again = SkippedUpdates.from_state(json.loads(json.dumps(skips.to_state())))
    assert again == skips and "5 to 7" in str(again.failure(7))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_line_has_null_where_a_number_is_not_finite(value: float) -> None:
    line = step_line({"loss": value, "kl_by_position": {"16": value, "64": 1.0}, "step": 3})
    assert line == dict.fromkeys(STEP_METRICS) | {"kl_by_position": {"16": None, "64": 1.0}, "step": 3}
    assert json.dumps(line, allow_nan=False)
