"""Prometheus, by Ray's metrics: they leave through the exporter of each node, on no port of ours."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from actors.metrics import FLOW_METRICS, PREFIX, Exported, step_metrics
from orchestrator.surface.trackers import exported
from orchestrator.surface.trackers.exported import Value

STEPS = 20  # of the median step time


class Prometheus:
    """`run` is the label of all values. `models` are the teachers whose canary failures start at 0."""

    name = "prometheus"

    def __init__(self, run: str, models: Iterable[str] = ()) -> None:
        from ray.util.metrics import Counter, Gauge

        kinds = {"gauge": Gauge, "counter": Counter}
        self._tags = {"run": run}
        self._metrics = {one.name: _made(kinds[one.kind], one) for one in (*FLOW_METRICS, *step_metrics())}
        self._counters = {one.name for one in FLOW_METRICS if one.kind == "counter"}
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._began = time.time()
        self._stepped: float | None = None
        self._of_step: list[Value] = []
        self._seconds: deque[float] = deque(maxlen=STEPS)
        self._set(("canary_failures", {"teacher": model}, 0.0) for model in models)

    def step(self, line: Mapping[str, Any]) -> None:
        self._stepped = line["time"]
        self._seconds.append(line["seconds_step"])
        self._of_step = [*exported.of_step(line), ("step_median_seconds", {}, median(self._seconds))]
        self._set(self._of_step)

    def evaluated(self, step: int, result: Mapping[str, Any]) -> None:
        """Held-out results are in the run's files; a series of a few points is none."""

    def status(self, status: Mapping[str, Any]) -> None:
        """Sets the last step's numbers again too: Ray forgets a gauge after two of its intervals, 20 s."""
        self._set(self._of_step)
        self._set(exported.of_status(status))
        self._set(exported.ages(status, self._began, self._stepped))

    def close(self, exit_code: int | None) -> None:
        """Ray drops the values as this process ends."""

    def _set(self, values: Iterable[Value]) -> None:
        """What is not a number is left out, and so forgotten: the exporter refuses it."""
        for name, labels, value in values:
            if name in self._counters:
                self._count(name, labels, value)
            elif value == value:
                self._metrics[name].set(value, labels | self._tags)

    def _count(self, name: str, labels: dict[str, str], value: float) -> None:
        key = name, tuple(labels.items())
        before = self._last.get(key)
        if before is None and value == 0.0:  # or the first event would be no increase; inc() refuses 0
            self._metrics[name]._record(0.0, labels | self._tags)
        elif (grown := value - (before or 0.0)) > 0.0:  # a rebuilt learner may have counted less
            self._metrics[name].inc(grown, labels | self._tags)
        self._last[key] = value


def _made(kind: type, metric: Exported) -> Any:
    return kind(f"{PREFIX}{metric.name}", description=metric.meaning, tag_keys=("run", *metric.labels))
