"""The parts of a reward in what a person sees: each a curve, and a value for Prometheus."""

from __future__ import annotations

import math

from orchestrator.surface.report.page import _components
from orchestrator.surface.trackers.exported import of_step

LINES = [
    {"step": 1, "reward_component": {"contains": 0.25, "overlong": -0.5}},
    {"step": 2, "reward_component": None},
    {"step": 3, "reward_component": {"contains": 0.5, "overlong": None}},
]


def test_each_component_is_a_curve_of_the_report() -> None:
    curves = {curve.name: tuple(curve.y) for curve in _components(LINES).data}
    assert curves == {"contains": (0.25, None, 0.5), "overlong": (-0.5, None, None)}


def test_a_reward_of_one_component_is_drawn_once() -> None:
    assert not _components([{"step": 1, "reward_component": {"contains": 0.25}}]).data


def test_each_component_is_a_value_for_prometheus() -> None:
    values = [value for value in of_step(LINES[2]) if value[0] == "reward_component"]
    assert values[0] == ("reward_component", {"component": "contains"}, 0.5)
    assert values[1][1] == {"component": "overlong"} and math.isnan(values[1][2])
