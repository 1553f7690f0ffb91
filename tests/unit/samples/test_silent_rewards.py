"""A run whose rewards carry no signal warns after ten steps, then at each doubling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.simulated.reward import SimulatedReward
from actors.wire.rewards import Rewards
from orchestrator.samples import credit
from orchestrator.samples.silent_rewards import SilentRewards
from tests.unit.samples.test_credit import recipe as outcome_recipe
from tests.unit.samples.test_credit import scored
from tests.unit.simulation import Simulation, recipe

SAME, APART = [[0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]]


def said(steps: Sequence[list[list[float]]], centred: bool = True) -> dict[int, str]:
    """What was said, by step."""
    signals, lines = SilentRewards(), {}
    for step, groups in enumerate(steps, 1):
        signals, line = signals.after(groups, centred)
        lines[step] = line
    return {step: line for step, line in lines.items() if line}


def test_the_warning_comes_after_ten_steps_and_at_each_doubling() -> None:
    lines = said([SAME] * 200)
    assert list(lines) == [10, 20, 40, 80, 160]
    assert lines[20].startswith(
        "warning: no prompt group has had a signal for 20 steps: all responses of a group had the same reward (80 "
        "responses, rewards 0 to 1), so that rewards move nothing; look at reward.rules"
    )


def test_a_step_with_a_signal_resets_the_count() -> None:
    assert list(said([*[SAME] * 9, APART, *[SAME] * 10])) == [20]
    assert said([APART] * 50) == {}


def test_steps_without_rewards_neither_count_nor_end_the_count() -> None:
    assert said([[]] * 50) == {}
    assert list(said([*[SAME] * 9, *[[]] * 7, SAME])) == [17]


def test_a_rounding_difference_is_no_signal() -> None:
    lines = said([[[0.3, 0.1 + 0.2]]] * 10)
    assert list(lines) == [10]


def test_without_a_groups_baseline_only_zero_is_no_signal() -> None:
    assert said([[[1.0], [1.0]]] * 30, centred=False) == {}
    lines = said([[[0.0], [0.0]]] * 10, centred=False)
    assert "every reward was 0 (20 responses, rewards 0)" in lines[10]


@pytest.mark.parametrize(
    ("outcome", "groups"),
    [
        ({"weight": 0.0}, []),
        ({"weight": 2.0}, [[2.0, 0.0]]),
        ({"weight": 1.0, "truncated": "as_zero"}, [[0.0, 0.0]]),
    ],
)
def test_rewards_are_those_that_the_objective_reads(outcome: dict[str, object], groups: list[list[float]]) -> None:
    batch = [scored("a.0", 1.0, finish="length"), scored("a.1", 0.0), scored("b.0", None)]
    assert credit.rewards_by_group(outcome_recipe(**outcome), batch) == groups


def test_a_run_warns_of_rewards_without_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: SimulatedReward, payload: object, rules: object, fields: list[str]) -> Rewards:
        return Rewards(dict.fromkeys(fields, 0.0))

    monkeypatch.setattr(SimulatedReward, "reward", nothing)
    objective = {"outcome": {"weight": 1.0, "baseline": "mean"}}
    sim = Simulation(recipe(tmp_path, run={"steps": 11}, objective=objective))
    assert sim.go_in_own_time() == 0
    (line,) = [notice for notice in sim.notices if "signal" in notice]
    assert "for 10 steps" in line and "80 responses, rewards 0)" in line
