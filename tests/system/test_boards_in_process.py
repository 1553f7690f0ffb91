"""A real Prometheus over real runs whose members sleep, all in this process: each panel has data, and the bottleneck is
the role that is slow.

Values take Ray's way, its recorder and its page, but for the processes between.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

from actors.simulated.members import Speeds
from orchestrator.run import Run
from orchestrator.scaling.elastic import Elastic
from orchestrator.surface.status import status_of
from orchestrator.surface.trackers.prometheus import Prometheus
from tests.deploy.test_boards import ALERTS, expressions
from tests.system.head import free_port
from tests.system.prometheus import SILENT, Server, prometheus
from tests.unit.simulation import Simulation, recipe

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
RECORDER = OpenTelemetryMetricRecorder(gauge_metric_ttl_seconds=3.0)  # it forgets gauges that are not set again
OF_NODES = r"ray_(object_store|node)_\w+"  # of raylets and agents, which are not there
SLOW = 0.02  # seconds a token


class Gauge:
    """As ray.util.metrics has it, without a worker process."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self._name, self._keys = name, set(tag_keys)
        RECORDER.register_gauge_metric(name, description)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tags.keys() == self._keys
        RECORDER.set_metric_value(self._name, tags, value)


class Counter(Gauge):
    """The same; the recorder adds."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self._name, self._keys = name, set(tag_keys)
        RECORDER.register_counter_metric(name, description)

    _record = Gauge.set

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0.0
        self._record(value, tags)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prometheus that scrapes this process."""
    port, ray = free_port(), tmp_path_factory.mktemp("ray")
    served, thread = prometheus_client.start_http_server(port, addr="127.0.0.1")
    latest = ray / "session_latest"
    latest.mkdir()
    targets = [{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{port}"]}]
    (latest / "prom_metrics_service_discovery.json").write_text(json.dumps(targets))
    with prometheus(ray) as server:
        yield server
    served.shutdown()
    thread.join()


@pytest.fixture(autouse=True)
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    monkeypatch.setattr("ray.util.metrics.Counter", Counter)


class Told:
    """A run whose tracker is told each step, and each half second how the run is."""

    def __init__(self, root: Path, name: str, speeds: Speeds) -> None:
        settings = recipe(root, run={"name": name, "root": str(root), "steps": 10_000, "seed": 5})
        self._tracker = Prometheus(name, ["teacher"])
        self.last: Mapping[str, Any] = {}
        self._simulation = Simulation(settings, on_step=self._step, speeds=speeds)

    def until(self, condition: Callable[[], Any], seconds: float = 45.0, deaths: int = 0) -> None:
        """Let the run go on until the condition holds; `deaths` rollout members are killed, one at a time."""
        asyncio.run(self._until(condition, seconds, deaths))

    async def _until(self, condition: Callable[[], Any], seconds: float, deaths: int) -> None:
        run = self._simulation.run
        elastic = Elastic(run, lambda text: None)
        running = asyncio.create_task(run.execute())
        try:
            async with asyncio.timeout(seconds):
                while not await asyncio.to_thread(condition):
                    assert not running.done(), running
                    elastic.tick()
                    self._tracker.status(status_of(run, elastic, "training"))
                    serving = run.pools.all()["rollout"].members.serving()
                    if self.last and serving and deaths > 0:
                        await self._simulation.transport.kill(serving[0].actors)
                        deaths -= 1
                    await asyncio.sleep(0.5)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await elastic.close()

    def _step(self, run: Run, line: Mapping[str, Any]) -> None:
        self.last = line
        self._tracker.step(line)


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
