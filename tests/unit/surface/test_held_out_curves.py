"""The report's curves of held-out sets: points and bars where they were measured, gain against movement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run import DONE
from orchestrator.surface.report.held_out import CURVES, GAINS, figures_of
from orchestrator.surface.report.page import write_report
from tests.unit.runs.test_sets import PROMPTS, TRAIN, with_sets
from tests.unit.simulation import Simulation


def line(value: float, low: float, high: float, moved: float | None) -> dict[str, Any]:
    return {"samples": 8, "pass@1": value, "start_kl": moved, "intervals": {"pass@1": [low, high]}}


def test_points_have_their_bars_and_the_gain_is_drawn_where_the_movement_is_known() -> None:
    steps = [{"step": 3, **line(0.5, 0.3, 0.6, 0.25)}, {"step": 6, **line(0.75, 0.5, 0.8, None)}]
    sets = {
        "maths": {"before": line(0.25, 0.1, 0.4, 0.0), "steps": steps, "after": None},
        "text": {"before": {"nll": 2.0, "intervals": {}}, "steps": [], "after": {"nll": 2.5}},
        "never": {"before": None, "steps": [], "after": None},
    }
    figures = {title: figure for title, _, figure in figures_of({"evaluation": {"sets": sets}}, 9)}
    assert [*figures] == [title for title, *_ in (*CURVES, *GAINS)]
    (curve,) = figures["Held-out sets: passing"].data
    assert (curve.name, *curve.x) == ("maths pass@1", 0, 3, 6) and [*curve.y] == [0.25, 0.5, 0.75]
    assert [*curve.error_y.array] == pytest.approx([0.15, 0.1, 0.05])
    assert [*curve.error_y.arrayminus] == pytest.approx([0.15, 0.2, 0.25])
    (gain,) = figures[GAINS[0][0]].data
    assert ([*gain.x], [*gain.y], [*gain.text]) == ([0.0, 0.25], [0.25, 0.5], ["step 0", "step 3"])
    (loss,) = figures["Held-out text: loss"].data
    assert ([*loss.x], [*loss.y]) == ([0, 9], [2.0, 2.5])
    assert not figures[GAINS[1][0]].data, "an old summary has no movement of weights"
    assert not any(figure.data for _, _, figure in figures_of({}, 0)), "nor sets"


def test_gain_is_drawn_over_the_share_of_weights_changed() -> None:
    sets = {"maths": {"before": line(0.25, 0.1, 0.4, 0.0), "steps": [{"step": 3, **line(0.5, 0.3, 0.6, 0.2)}]}}
    movement = [
        {"step": 0, "weights_changed": 0.0},
        {"step": 3, "weights_changed": 0.125},
        {"step": 9, "weights_changed": 0.5},
    ]
    heldout = {"before": {"reward_mean": -1.0, "start_kl": 0.0}, "after": {"reward_mean": 2.0, "start_kl": 0.5}}
    summary = {"evaluation": heldout | {"steps": [], "sets": sets, "movement": movement}}
    figures = {title: figure for title, _, figure in figures_of(summary, 9)}
    held_out, maths = figures[GAINS[1][0]].data
    assert (held_out.name, [*held_out.x], [*held_out.y]) == ("heldout reward_mean", [0.0, 0.5], [-1.0, 2.0])
    assert (maths.name, [*maths.x], [*maths.y]) == ("maths pass@1", [0.0, 0.125], [0.25, 0.5])
    assert [*figures[GAINS[0][0]].data[0].x] == [0.0, 0.5], "data.heldout has its curve over the KL, too"


def test_the_report_of_a_run_has_the_curves(tmp_path: Path) -> None:
    settings = with_sets(tmp_path, checkpoint={"every": 2})
    settings = settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"movement": True})})
    run = Simulation(settings, train=TRAIN, heldout=[], sets=PROMPTS)
    assert run.go() == DONE
    moved = json.loads((run.directory / "summary.json").read_text())["evaluation"]["movement"]
    assert [one["step"] for one in moved] == [0, 2, 3, 4, 6], "at each evaluation once"
    assert moved[0]["weights_changed"] == 0.0 < moved[-1]["weights_changed"]
    page = write_report(run.directory, str).read_text()
    for title in ("Held-out sets: passing", "Held-out text: loss", *(title for title, *_ in GAINS)):
        assert title in page
