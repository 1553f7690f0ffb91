"""Prompt groups whose rewards are all equal are replaced by fresh ones, within a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.reward import SimulatedReward
from actors.wire.records import SampleHeader, unpack_samples
from actors.wire.rewards import Rewards
from configs.schema import Recipe
from orchestrator.progress import Faults
from orchestrator.run import DONE, STOPPED
from orchestrator.samples.buffer import Group, Scored
from orchestrator.samples.dynamic_sampling import has_signal, to_replace
from tests.unit.recipes import REWARD_ONLY, loaded, refusal
from tests.unit.simulation import EACH, GROUPS, Simulation, metrics, order_of, recipe, stop_at, trained

STEPS = 5
BOUND = {"batch.max_replacements": 2, "batch.samples_per_prompt": 2, "objective.outcome.baseline": "mean"}


def is_silent(group: int) -> bool:
    return group % 3 == 0 or group in (7, 8)


@pytest.fixture
def some_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def reward(self: Any, payload: Any, rules: Any, fields: Any) -> Rewards:
        uids = [sample.uid.split(".") for sample in unpack_samples(payload) if sample.uid in fields]
        return Rewards({f"{g}.{k}": 0.5 if is_silent(int(g)) else float(k) for g, k in uids})

    monkeypatch.setattr(SimulatedReward, "reward", reward)


def settings(root: Path, most: int, staleness: int = 0, **run: Any) -> Recipe:
    return recipe(
        root,
        run={"steps": STEPS} | run,
        batch={"max_replacements": most},
        objective={"target": "none", "outcome": {"weight": 1.0, "baseline": "mean"}},
        scorer={"teacher": {}},
        max_staleness=staleness,
    )


def steps_of(root: Path) -> list[list[int]]:
    """The groups that each step trained."""
    found: dict[str, dict[int, None]] = {}
    for row in trained(root):
        found.setdefault(row["step"], {})[int(row["group"])] = None
    return [list(groups) for groups in found.values()]


def expected(most: int) -> tuple[list[list[int]], list[int]]:
    """Groups of each step and how many it replaced, by the rule in words: of the next groups in data order, those
    without signal give way to the next ones until the step has replaced `most`."""
    steps, replaced, coming = [], [], iter(range(10_000))
    for _ in range(STEPS):
        groups, count = [next(coming) for _ in range(GROUPS)], 0
        while silent := [group for group in groups if is_silent(group)][: most - count]:
            groups = [group for group in groups if group not in silent] + [next(coming) for _ in silent]
            count += len(silent)
        steps.append(groups)
        replaced.append(count)
    return steps, replaced


@pytest.mark.parametrize("most", [0, 1, 2, 50])
def test_on_policy_a_step_trains_the_next_groups_with_signal_in_data_order(
    tmp_path: Path, some_silent: None, most: int
) -> None:
    assert Simulation(settings(tmp_path, most)).go() == DONE
    steps, replaced = expected(most)
    assert steps_of(tmp_path) == [sorted(groups) for groups in steps]
    lines = metrics(tmp_path)
    assert [line["groups_replaced"] for line in lines] == replaced
    if most == 50:
        assert all(line["groups_without_signal"] == 0.0 for line in lines), "they are in no denominator"
        assert all(line["reward_mean"] == 0.5 for line in lines) and sum(replaced) > 8


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_that_is_stopped_and_resumed_replaces_the_same_groups(
    tmp_path: Path, some_silent: None, step: int
) -> None:
    whole, parts = settings(tmp_path / "whole", 2), settings(tmp_path / "parts", 2)
    assert Simulation(whole).go() == DONE
    assert Simulation(parts, stop_at(step)).go() == STOPPED
    assert Simulation(parts).go() == DONE
    assert order_of(trained(tmp_path / "parts")) == order_of(trained(tmp_path / "whole"))
    counts = [[line["groups_replaced"] for line in metrics(tmp_path / name)] for name in ("parts", "whole")]
    assert counts[0] == counts[1]


def test_a_stop_between_a_replacement_and_its_step_keeps_the_count(tmp_path: Path, some_silent: None) -> None:
    simulation = Simulation(settings(tmp_path, 2))
    progress = simulation.run.progress
    progress.replaced = 2
    state = progress.to_state(Faults(), 1)
    progress.replaced = 0
    progress.rewind(state, 0.0)
    assert progress.replaced == 2


@pytest.mark.parametrize("staleness", [1, 3])
def test_off_policy_no_group_without_signal_is_trained_and_none_twice(
    tmp_path: Path, some_silent: None, staleness: int
) -> None:
    speeds = Speeds(rollout=0.0005)
    assert Simulation(settings(tmp_path, 50, staleness), speeds=speeds).go(40.0) == DONE
    groups = [group for step in steps_of(tmp_path) for group in step]
    assert len(groups) == len(set(groups)) == STEPS * GROUPS and not any(map(is_silent, groups))
    assert len(trained(tmp_path)) == STEPS * GROUPS * EACH


def group_of(*rewards: float | None, finish: str = "stop") -> Group:
    """A group of these rewards; None: a rejected sample."""
    samples: dict[str, Scored | None] = {}
    for number, reward in enumerate(rewards):
        uid = f"00000000.{number:03d}"
        header = SampleHeader(uid, "00000000", 0, 1, number + 1, number + 1, finish, ((0, number + 1),))
        samples[uid] = None if reward is None else Scored(header, None, reward=reward)
    return Group(0, samples)


@pytest.mark.parametrize(
    ("rewards", "signal"),
    [
        ((1.0, 0.0), True),
        ((1.0, 1.0), False),
        ((0.1 + 0.2, 0.3), False),
        ((1.0, None), False),
        ((None, None), False),
        ((0.0, None, 1.0), True),
    ],
)
def test_a_group_has_a_signal_where_two_rewards_differ(rewards: tuple[float | None, ...], signal: bool) -> None:
    assert has_signal(loaded(REWARD_ONLY | BOUND), group_of(*rewards)) is signal


def test_no_more_are_replaced_than_the_step_has_left() -> None:
    groups = {9: group_of(1.0, 1.0), 4: group_of(0.0, 0.0), 6: group_of(0.0, 1.0), 2: group_of(None, 1.0)}
    asked = loaded(REWARD_ONLY | BOUND)
    assert [to_replace(asked, groups, replaced) for replaced in (0, 1, 2, 3)] == [(2, 4), (2,), (), ()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "batch.max_replacements: groups of equal rewards still learn from a target"),
        (REWARD_ONLY | {"objective.outcome.baseline": "value"}, "outcome.baseline: mean or rloo"),
        (REWARD_ONLY | {"objective.outcome.baseline": "none"}, "outcome.baseline: mean or rloo"),
    ],
)
def test_a_bound_without_groups_to_replace_is_refused(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(BOUND | changes)
