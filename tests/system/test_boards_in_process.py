"""A real Prometheus over real runs whose members compute nothing, all in this process: each expression of each panel
has data with the labels that it names, and the bottleneck is the role that is slow.

No run has every number: a support decides which divergences are known, and an objective what is trained. So an
expression is answered where one of the runs answers it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.simulated.known import Speeds
from actors.simulated.learner import SimulatedLearner
from scripts.boards.queries import EXPORTED, OTHERS, full, names
from tests.deploy.test_boards import ALERTS, expressions
from tests.system.measuring import KnownRollout, KnownScorer, LateRollout, MeasuringLearner, PickyReward, one_rank
from tests.system.misbehaving import PacedLearner, members
from tests.system.prometheus import (
    NOWHERE,
    OF_A_CLUSTER,
    Raised,
    Server,
    Target,
    filtered_by,
    firing,
    grouped_by,
    targets,
)
from tests.system.told import Told, export_to_this_process, scraped, side_by_side

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
EXCUSED = NOWHERE | OF_A_CLUSTER
SECONDS = 60.0  # for all expressions to be answered
SLOW, SLOWER = 0.02, 0.06  # seconds a token


class SlowLearner(PacedLearner):
    pace = 16 * SLOWER


SLOW_ROLE = {
    "rollout": members(SimulatedLearner, speeds=Speeds(rollout=SLOWER)),
    "scorer.teacher": members(SimulatedLearner, speeds=Speeds(score=SLOWER)),
    "learner": members(SlowLearner),
}
SELDOM: Mapping[str, Any] = {
    "checkpoint": {"every": 100},
    "record": {"every": 100},
}  # or a busy disk would be the bottleneck

NONE = {"path": "/none"}
RULES = [{"kind": "length", "low": 1, "high": 8}, {"kind": "contains", "text": "a"}]
PLAIN = members(SimulatedLearner, speeds=Speeds(rollout=SLOW))
MEASURED = members(MeasuringLearner, KnownRollout, KnownScorer, PickyReward, Speeds(rollout=SLOW))
MEASURED_LATE = members(MeasuringLearner, LateRollout, KnownScorer, PickyReward, Speeds(rollout=SLOW))
# Runs of which each knows what another does not. The GPUs are those that roles ask for.
RUNS: Mapping[str, Mapping[str, Any]] = {
    "clean": {"members": PLAIN},
    "sampled": {
        "members": MEASURED,
        "models": {"reference": NONE},
        "objective": {
            "baseline": "value",
            "clip": 0.5,
            "outcome": {"weight": 1.0, "baseline": "mean"},
            "reference": {"model": "reference", "beta": 0.1},
            "trust": {"kind": "ppo"},
        },
        "batch": {"updates": 2},
        "reward": {"rules": RULES},
        "metrics": {"start_kl": "sampled"},
        "stream_tokens": 4,
        "early_stop": {"log_ratio": -0.5, "after_tokens": 4},
        "learner": {"resources": {"gpus": 1}},
    },
    "topk": {
        "members": MEASURED_LATE,
        "models": {"poet": NONE},
        "objective": {
            "target": {"teacher": 0.7, "poet": 0.3},
            "support": "topk",
            "topk": 8,
            "prefix": {"student": 0.8, "teacher": 0.2},
        },
        "max_staleness": 2,
        "on_stale": "mask_tokens",
    },
    "rewarded": {
        "members": MEASURED,
        "objective": {"target": "none", "outcome": {"weight": 1.0, "baseline": "mean"}},
        "batch": {"max_replacements": 4},
        "reward": {"rules": RULES},
        "max_staleness": 1,
        "on_stale": "drop",
    },
    "dies": {"members": PLAIN, "deaths": 8},
}


@dataclass(frozen=True)
class Lived:
    """What became of the runs: `unanswered` by any, and `raised` by each."""

    server: Server
    unanswered: list[Target]
    raised: Raised


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, one_rank():
        export_to_this_process(patch)
        with scraped(tmp_path_factory.mktemp("ray")) as server:
            yield server


@pytest.fixture(scope="module")
def lived(found: Server, tmp_path_factory: pytest.TempPathFactory) -> Lived:
    root, began = tmp_path_factory.mktemp("runs"), time.time()
    left = targets(EXCUSED)

    def over() -> bool:
        for run in map(found.of, RUNS):
            left[:] = [target for target in left if not run.answers(target)]
        return not left or time.time() > began + SECONDS

    side_by_side([Told(root, name, **how) for name, how in RUNS.items()], over, SECONDS + 20.0)
    return Lived(found, left, found.raised(began, time.time()))


def test_the_bottleneck_is_the_role_that_is_slow(found: Server, tmp_path: Path) -> None:
    gains: dict[str, dict[str, float]] = {}  # by slow role, once it is named: the first steps may be another's

    def named() -> bool:
        for role in SLOW_ROLE.keys() - gains.keys():
            if found.of(role).shown("Which role is the bottleneck?") == {role: 1.0}:
                gains[role] = found.of(role).shown("What would one more member bring?")
        return gains.keys() == SLOW_ROLE.keys()

    side_by_side([Told(tmp_path, role, how, **SELDOM) for role, how in SLOW_ROLE.items()], named)
    for role, gain in gains.items():
        best = max(gain, key=lambda name: gain[name])
        assert best == role or role == "learner", "the learner cannot grow"


def test_every_expression_of_every_panel_has_data(lived: Lived) -> None:
    assert not lived.unanswered


def test_every_metric_that_is_named_is_there_and_no_excuse_is_needless(lived: Lived) -> None:
    named = {name for _, expr in expressions() for name in names(expr)}
    assert named - lived.server.names() == EXCUSED.keys() == OTHERS.keys(), "every metric of ours is there"


def test_every_label_that_an_expression_names_is_there(lived: Lived) -> None:
    """Of panels, the answers had those that they are grouped by."""
    for where, expr in expressions():
        missing = {(name, label) for name, label in filtered_by(expr) if label not in lived.server.labels(name)}
        assert not {name for name, _ in missing} - EXCUSED.keys(), (where, missing)
    for alert, rule in ALERTS.items():
        named = grouped_by(rule["expr"]) | set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        without = {name for name in names(rule["expr"]) if not named <= lived.server.labels(name).keys()}
        assert not without - EXCUSED.keys(), (alert, named, without)


def test_labels_are_those_that_are_promised(lived: Lived) -> None:
    """With all of their values, where these are the same in every run."""
    for one in EXPORTED.values():
        labels = lived.server.labels(full(one.name))
        assert {"run", *one.labels} <= labels.keys(), one.name
        assert not one.values or labels[one.labels[-1]] == {*one.values}, one.name


def test_what_is_counted_by_phase_or_reason_has_happened_for_each(lived: Lived) -> None:
    """A counter that stays 0 is data as well."""
    for one in EXPORTED.values():
        if one.kind == "counter" and one.values:
            grown = lived.server.ask(f"sum by ({one.labels[-1]}) (increase({full(one.name)}[1h]))")
            assert grown.keys() == {*one.values} and min(grown.values()) > 0.0, (one.name, grown)


def test_boards_offer_the_runs_and_their_roles(lived: Lived) -> None:
    assert lived.server.choices("run") >= RUNS.keys()
    assert lived.server.of("rewarded").choices("role") == {"rollout", "reward", "learner"}


def test_only_members_that_die_one_after_the_other_raise_an_alert(lived: Lived) -> None:
    assert firing(lived.raised) == {"dies": {"RestartStorm"}}
    assert {rule["name"]: rule["health"] for rule in lived.server.rules()} == dict.fromkeys(ALERTS, "ok")
