"""A real Prometheus over real runs whose members sleep, all in this process: each panel has data, and the bottleneck is
the role that is slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.simulated.members import Speeds
from tests.deploy.test_boards import ALERTS, expressions
from tests.system.prometheus import SILENT, Server
from tests.system.told import Told, export_to_this_process, scraped

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
OF_NODES = r"ray_(object_store|node)_\w+"  # of raylets and agents, which are not there
SLOW = 0.02  # seconds a token


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with scraped(tmp_path_factory.mktemp("ray")) as server:
        yield server


@pytest.fixture(autouse=True)
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    export_to_this_process(monkeypatch)


@pytest.mark.parametrize(
    ("role", "speeds"),
    [
        ("rollout", Speeds(rollout=SLOW)),
        ("scorer.teacher", Speeds(score=SLOW)),
        ("learner", Speeds(learn=SLOW)),
    ],
)
def test_the_bottleneck_is_the_role_that_is_slow(found: Server, tmp_path: Path, role: str, speeds: Speeds) -> None:
    found.run = role.partition(".")[0]
    told = Told(tmp_path, found.run, speeds)
    told.until(lambda: found.shown("Which role is the bottleneck?") == {role: 1.0})  # the first steps may be another's
    gains = found.shown("What would one more member bring?")
    best = max(gains, key=lambda name: gains[name])
    assert best == role or role == "learner", "the learner cannot grow"


def test_every_panel_has_data_and_no_alert_fires(found: Server, tmp_path: Path) -> None:
    found.run = "clean"
    told = Told(tmp_path, "clean", Speeds(rollout=SLOW))
    told.until(lambda: found.shown("Which role is the bottleneck?") and not found.unanswered(_silent(told)))
    named = {name for _, expr in expressions() for name in re.findall(r"\bray_\w+", expr)}
    assert {name for name in named - found.names() if not re.fullmatch(OF_NODES, name)} <= _silent(told)
    assert not found.firing()
    assert {rule["name"]: rule["health"] for rule in found.rules()} == dict.fromkeys(ALERTS, "ok")


def test_members_that_die_one_after_the_other_raise_an_alert(found: Server, tmp_path: Path) -> None:
    found.run = "storm"
    Told(tmp_path, "storm", Speeds(rollout=SLOW)).until(found.firing, deaths=8)
    assert found.firing() == {"RestartStorm"}
    assert found.shown("What fires?")


def _silent(told: Told) -> set[str]:
    """Metrics that this run cannot have: what its steps do not know, and those of nodes."""
    null = {f"ray_logratio_step_{name}" for name, value in told.last.items() if value is None}
    of_nodes = {
        name for _, expr in expressions() for name in re.findall(r"\bray_\w+", expr) if re.fullmatch(OF_NODES, name)
    }
    return null | of_nodes | SILENT.keys()
