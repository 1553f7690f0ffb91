"""Runs on simulated members in this process, whose metrics go Ray's way to a page that a Prometheus can scrape: its
recorder and its exporter, but for the processes between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

from configs.schema import Recipe
from orchestrator.pools.layout import MemberSpecs
from orchestrator.run import DONE, Run
from orchestrator.samples.prompts import Prompt
from orchestrator.scaling.elastic import Elastic
from orchestrator.surface.status import status_of
from orchestrator.surface.trackers.prometheus import Prometheus
from tests.system.head import free_port, wait_for
from tests.system.prometheus import Server, prometheus
from tests.unit.simulation import HELDOUT, TRAIN, Simulation, recipe

RECORDER = OpenTelemetryMetricRecorder(gauge_metric_ttl_seconds=3.0)  # it forgets gauges that are not set again
STATUS_SECONDS = 0.5  # between two statuses of a run


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


def export_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    monkeypatch.setattr("ray.util.metrics.Counter", Counter)


@contextmanager
def scraped(ray: Path, rules: Path | None = None) -> Iterator[Server]:
    """A Prometheus that scrapes this process. `ray`: a folder in place of Ray's temporary one."""
    port = free_port()
    served, thread = prometheus_client.start_http_server(port, addr="127.0.0.1")
    latest = ray / "session_latest"
    latest.mkdir()
    targets = [{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{port}"]}]
    (latest / "prom_metrics_service_discovery.json").write_text(json.dumps(targets))
    try:
        with prometheus(ray, rules) as server:
            wait_for(lambda: server.ask("up"), "the first scrape", 30.0)
            yield server
    finally:
        served.shutdown()
        thread.join()


class Told:
    """A run whose tracker is told each step, and now and then how the run is. `deaths`: rollout members that are
    killed, all that serve at a time; `changes`: of the recipe."""

    def __init__(
        self, root: Path, name: str, members: MemberSpecs | None = None, deaths: int = 0, **changes: Any
    ) -> None:
        run = {"name": name, "root": str(root), "steps": 10_000, "seed": 5} | changes.pop("run", {})
        own = recipe(root, run=run, **changes)
        self._tracker = Prometheus(name, own.scored_models)
        self._deaths = deaths
        self._stepped = False
        train, heldout = ([_asked(own, one) for one in prompts] for prompts in (TRAIN, HELDOUT))
        self._simulation = Simulation(own, self._step, train=train, heldout=heldout, members=members)

    async def lives(self, condition: Callable[[], Any], seconds: float, ends: bool = False) -> None:
        """Let the run go on until the condition holds, or until it has made its last step if it `ends`."""
        run = self._simulation.run
        elastic = Elastic(run, lambda text: None)
        running = asyncio.create_task(run.execute())
        try:
            async with asyncio.timeout(seconds):
                while not await asyncio.to_thread(condition):
                    elastic.tick()
                    self._tracker.status(status_of(run, elastic, "training"))
                    if running.done():
                        code = running.result()  # or what it failed of
                        assert ends and code == DONE
                        break
                    if self._stepped:
                        await self._kill()
                    await asyncio.sleep(STATUS_SECONDS)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await elastic.close()

    async def _kill(self) -> None:
        struck = self._simulation.run.pools.all()["rollout"].members.serving()[: self._deaths]
        for member in struck:
            await self._simulation.transport.kill(member.actors)
        self._deaths -= len(struck)

    def _step(self, run: Run, line: Mapping[str, Any]) -> None:
        self._stepped = True
        self._tracker.step(line)


def _asked(own: Recipe, prompt: Prompt) -> Prompt:
    """A prompt that each scored model of a recipe can read."""
    return replace(prompt, ids={**dict.fromkeys(own.scored_models, prompt.ids["teacher"]), **prompt.ids})


def side_by_side(runs: Iterable[Told], condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Let runs go on, all in one event loop, until the condition holds."""

    async def live() -> None:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for run in runs:
                tasks.create_task(run.lives(over.is_set, 2 * seconds))
            async with asyncio.timeout(seconds):
                while not await asyncio.to_thread(condition):
                    await asyncio.sleep(STATUS_SECONDS)
            over.set()

    asyncio.run(live())
