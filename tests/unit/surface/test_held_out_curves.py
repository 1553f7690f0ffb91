"""The report's curves of held-out sets: points and bars where they were measured, gain against movement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.run import DONE
from orchestrator.surface.report.held_out import CURVES, GAIN, figures_of
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
    assert [*figures] == [*(title for title, *_ in CURVES), GAIN[0]]
    (curve,) = figures["Held-out sets: passing"].data
    assert (curve.name, *curve.x) == ("maths pass@1", 0, 3, 6) and [*curve.y] == [0.25, 0.5, 0.75]
    assert [*curve.error_y.array] == pytest.approx([0.15, 0.1, 0.05])
    assert [*curve.error_y.arrayminus] == pytest.approx([0.15, 0.2, 0.25])
    (gain,) = figures[GAIN[0]].data
    assert ([*gain.x], [*gain.y], [*gain.text]) == ([0.0, 0.25], [0.25, 0.5], ["step 0", "step 3"])
    (loss,) = figures["Held-out text: loss"].data
    assert ([*loss.x], [*loss.y]) == ([0, 9], [2.0, 2.5])
    assert not any(figure.data for _, _, figure in figures_of({}, 0)), "an old summary has no sets"


def test_the_report_of_a_run_has_the_curves(tmp_path: Path) -> None:
    run = Simulation(with_sets(tmp_path), train=TRAIN, heldout=[], sets=PROMPTS)
    assert run.go() == DONE
    page = write_report(run.directory, str).read_text()
    for title in ("Held-out sets: passing", "Held-out text: loss", GAIN[0]):
        assert title in page
