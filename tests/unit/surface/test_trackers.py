"""Trackers: what they are given, that one that fails holds up nobody, and what Prometheus is told."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from actors.metrics import FLOW_METRICS, LABELS, NOT_EXPORTED, STEP_METRICS, step_line, step_metrics
from configs.load import parse_recipe
from configs.refusal import RecipeError
from orchestrator.surface.trackers import exported
from orchestrator.surface.trackers.feed import Feed, numbers
from orchestrator.surface.trackers.libraries import TRACKERS, check_installed
from orchestrator.surface.trackers.prometheus import Prometheus
from tests.unit.recipes import SMALLEST

LINE = step_line(
    {"step": 3, "loss": 0.25, "reverse_kl": None, "kl_support": "full", "time": 1.7e9, "seconds_step": 2.0}
    | {"reward_component": {"length": 0.5, "model": None}}
)
STATUS: dict[str, Any] = {
    "time": 1_000.0,
    "step": 3,
    "steps": 9,
    "ended_early": None,
    "members": [
        {"name": "rollout-0", "state": "serving", "version": 2, "load": 5, "restarts": 1, "place": 0},
        {"name": "rollout-4", "state": "starting", "version": None, "load": 0, "restarts": 3, "place": 1},
        {"name": "scorer.teacher-0", "state": "serving", "version": 0, "load": 77, "restarts": 0, "place": 0},
    ],
    "roles": [
        {"role": "rollout", "restarts": 1, "retries": 7, "busy": 0.75, "waiting": 0.25},
        {"role": "scorer.teacher", "restarts": 0, "retries": 0, "busy": None, "waiting": None},
        {"role": "learner", "restarts": 0, "retries": 0, "busy": 0.5, "waiting": 0.2},
    ],
    "queues": [{"edge": "learn", "depth": 12, "oldest_seconds": 3.5}],
    "totals": {
        "tokens": {"generated": 100, "scored": 90, "trained": 80},
        "samples_lost": {"cut": 0, "aged": 2, "dropped": 1},
        "weight_sync_seconds": {"gather": 1.5},
        "score_bytes": 4_096,
        "suspicious_tokens": 0,
        "updates_skipped": 1,
        "canary_failures": {"teacher": 1},
        "learner_rebuilds": 0,
        "gpu_seconds": {"rollout": 60.0},
    },
    "bottleneck": {"role": "rollout", "busy": 0.9, "samples_per_second": 8.0, "one_more": {"rollout": 0.4}},
    "saved_at": None,
}


class Recorder:
    """A tracker that writes down what it is told; it fails at `fails_at`."""

    def __init__(self, name: str, told: list[tuple[str, str]], fails_at: str = "") -> None:
        self.name = name
        self._told = told
        self._fails_at = fails_at

    def _note(self, method: str) -> None:
        assert threading.current_thread() is not threading.main_thread()
        if method == self._fails_at:
            raise OSError(f"{method} is refused")
        self._told.append((self.name, method))

    def step(self, line: Mapping[str, Any]) -> None:
        self._note(f"step {line['step']}")

    def evaluated(self, step: int, result: Mapping[str, Any]) -> None:
        self._note(f"evaluated {step}")

    def status(self, status: Mapping[str, Any]) -> None:
        self._note("status")

    def close(self, exit_code: int | None) -> None:
        self._note(f"close {exit_code}")


def test_a_tracker_that_fails_is_dropped_and_the_others_go_on() -> None:
    told: list[tuple[str, str]] = []
    notices: list[str] = []

    def broken() -> Recorder:
        raise ConnectionError("no server there")

    makers = [lambda: Recorder("bad", told, fails_at="step 2"), broken, lambda: Recorder("good", told)]
    feed = Feed(makers, notices.append)
    for step in (1, 2, 3):
        feed.step({"step": step})
    feed.evaluated(3, {"reverse_kl": 0.5})
    feed.status(STATUS)
    feed.close(0)
    assert [what for who, what in told if who == "bad"] == ["step 1"]
    good = ["step 1", "step 2", "step 3", "evaluated 3", "status", "close 0"]
    assert [what for who, what in told if who == "good"] == good
    assert len(notices) == 2 and "no server there" in notices[0]
    assert "tracker bad: step 2 is refused" in notices[1] and "\n" not in notices[1]


def test_a_tracker_that_hangs_holds_up_nobody_and_loses_what_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.surface.trackers.feed.LAST_SECONDS", 0.1)
    monkeypatch.setattr("orchestrator.surface.trackers.feed.LONGEST", 4)
    notices: list[str] = []
    never = threading.Event()

    def hangs() -> Recorder:
        never.wait(30.0)
        raise AssertionError

    feed = Feed([hangs], notices.append)
    for step in range(50):
        feed.step({"step": step})
    feed.close(1)
    never.set()
    assert len([n for n in notices if "later ones are lost" in n]) == 1
    assert "has not taken all numbers" in notices[-1]


def test_only_numbers_that_are_known_are_passed_on() -> None:
    assert numbers(LINE) == {"loss": 0.25, "seconds_step": 2.0}


def test_every_value_that_prometheus_gets_is_defined_with_its_labels() -> None:
    defined = {one.name: one for one in (*FLOW_METRICS, *step_metrics())}
    values = [*exported.of_status(STATUS), *exported.of_step(LINE), *exported.ages(STATUS, 900.0, None)]
    for name, labels, _ in values:
        assert tuple(labels) == defined[name].labels, name
        assert not defined[name].values or [*labels.values()][-1] in defined[name].values, (name, labels)
    assert {label for one in defined.values() for label in one.labels} <= LABELS.keys()
    never_given = defined.keys() - {name for name, _, _ in values} - {"step_median_seconds"}
    assert not never_given, "a metric that is defined and that nothing sets"
    assert len(defined) == len(FLOW_METRICS) + len(STEP_METRICS) - len(NOT_EXPORTED)


def test_what_prometheus_is_told_of_a_status() -> None:
    values = {(name, *labels.values()): value for name, labels, value in exported.of_status(STATUS)}
    assert values["members", "rollout", "serving"] == 1 and values["members", "rollout", "starting"] == 1
    assert values["members", "learner", "leaving"] == 0
    assert values["member_load", "scorer.teacher", "0"] == 77
    assert values["member_load", "rollout", "1"] == 0, "by its place: each replacement would be a series more"
    assert ("member_version", "rollout", "1") not in values
    assert values["time_share", "learner", "idle"] == pytest.approx(0.3)
    assert values["bottleneck", "rollout"] == 1 and values["bottleneck", "learner"] == 0
    ages = {name: value for name, _, value in exported.ages(STATUS, 900.0, 990.0)}
    assert ages == {"checkpoint_age_seconds": 100.0, "step_age_seconds": 10.0}


def test_what_a_step_does_not_know_replaces_what_the_last_one_knew() -> None:
    values = {name: value for name, _, value in exported.of_step(LINE)}
    assert values["step_loss"] == 0.25 and math.isnan(values["step_reverse_kl"])
    assert "step_kl_support" not in values


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What Ray's metrics are told."""
    found: list[tuple[str, float]] = []

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self._name = name

        def _record(self, value: float, tags: dict[str, str]) -> None:
            found.append((self._name, value))

        inc = set = _record

    monkeypatch.setattr("ray.util.metrics.Counter", Metric)
    monkeypatch.setattr("ray.util.metrics.Gauge", Metric)
    return found


def test_a_counter_is_there_before_its_first_event(told: list[tuple[str, float]]) -> None:
    tracker = Prometheus("sim", ["teacher"])
    tracker.status(STATUS)
    totals = STATUS["totals"] | {"updates_skipped": STATUS["totals"]["updates_skipped"] + 2}
    tracker.status({**STATUS, "totals": totals})
    assert [value for name, value in told if name == "logratio_updates_skipped"] == [1.0, 2.0]
    assert next(value for name, value in told if name == "logratio_canary_failures") == 0.0
    assert ("logratio_restarts", 0.0) in told


def test_a_gauge_is_set_again_with_each_status_and_an_unknown_one_is_not(told: list[tuple[str, float]]) -> None:
    """Ray forgets what is not set again."""
    tracker = Prometheus("sim")
    tracker.step(LINE)
    told.clear()
    tracker.status(STATUS)
    tracker.status(STATUS)
    assert told.count(("logratio_step_loss", 0.25)) == 2 and told.count(("logratio_steps_planned", 9)) == 2
    assert "logratio_step_reverse_kl" not in {name for name, _ in told}


def test_a_run_that_has_ended_early_plans_no_more_steps() -> None:
    """Or it would look like one whose driver is gone."""
    ended = STATUS | {"ended_early": "reverse_kl below 0.1"}
    assert ("steps_planned", {}, 9) in exported.of_status(STATUS)
    assert ("steps_planned", {}, 3) in exported.of_status(ended)


def test_a_tracker_that_is_not_installed_is_refused_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(("tensorboard",))
    monkeypatch.setattr("orchestrator.surface.trackers.libraries.find_spec", lambda name: None)
    with pytest.raises(RecipeError) as refused:
        check_installed(("tensorboard", "wandb"))
    assert refused.value.lines[1] == "metrics.trackers: wandb is not installed; pip install wandb"


def test_tensorboard_files_hold_every_number(tmp_path: Path) -> None:
    event_of = import_module("tensorboardX.proto.event_pb2").Event.FromString

    tracker = TRACKERS["tensorboard"](parse_recipe(SMALLEST), tmp_path)
    tracker.step(LINE)
    tracker.evaluated(3, {"reverse_kl": 0.5, "kl_support": "full"})
    tracker.close(0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, found = file.read_bytes(), {}
    while content:
        length = int.from_bytes(content[:8], "little")
        event = event_of(content[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[16 + length :]
    assert found == {("step/loss", 3): 0.25, ("step/seconds_step", 3): 2.0, ("held_out/reverse_kl", 3): 0.5}
