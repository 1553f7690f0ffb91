"""PromQL expressions over the metrics of a run, and of Ray, that are known to exist."""

from __future__ import annotations

import re
from dataclasses import dataclass

from actors.metrics import FLOW_METRICS, PREFIX, STEP_PREFIX, Exported, step_metrics

RAY = "ray_"  # what Ray's exporter puts before every name
EXPORTED: dict[str, Exported] = {one.name: one for one in (*FLOW_METRICS, *step_metrics())}
RUN = 'run="$run"'
WINDOW = "$__rate_interval"
LONG = "30m"  # what happens once a step, in runs whose steps take minutes

# Of Ray and, through its logger, of vLLM: names that a scrape of the pinned versions has, and their meanings.
OTHERS: dict[str, str] = {
    "ray_object_store_memory": "bytes of Ray's objects by place: in shared memory, on disk, on a heap",
    "ray_object_store_available_memory": "bytes that a node's object store has left",
    "ray_memory_manager_worker_eviction_total": "processes that Ray killed because a node ran out of memory",
    "ray_node_manager_unexpected_worker_failure_total": "processes that ended without Ray's doing",
    "ray_node_mem_used": "bytes of memory in use on a node",
    "ray_node_mem_total": "bytes of memory of a node",
    "ray_node_disk_free": "bytes free on the disk of a node",
    "ray_node_gpus_utilization": "how busy a GPU is, in percent",
    "ray_vllm_num_requests_running": "requests that an engine decodes",
    "ray_vllm_num_requests_waiting": "requests that an engine has not begun",
    "ray_vllm_kv_cache_usage_perc": "share of an engine's KV cache in use, 0 to 1",
    "ray_vllm_num_preemptions_total": "requests that an engine interrupted for want of KV cache",
}


@dataclass(frozen=True)
class Query:
    """`legend` in Grafana's notation; `table`: one row a series, the value of now."""

    expr: str
    legend: str
    now: bool = False
    table: bool = False


def full(name: str) -> str:
    """The name that Prometheus has for a metric of ours. Raises KeyError for one that is not exported."""
    total = "_total" if EXPORTED[name].kind == "counter" else ""
    return f"{RAY}{PREFIX}{name}{total}"


def metric(name: str, *matchers: str) -> str:
    """A selector of a metric of ours, of the run that is chosen. Raises KeyError for a name that is not exported."""
    return f"{full(name)}{{{', '.join((RUN, *matchers))}}}"


def step(name: str) -> Query:
    """A number of the last step."""
    return Query(f"max({metric(STEP_PREFIX + name)})", name)


def last(name: str, by: str = "", legend: str = "", *matchers: str) -> Query:
    """A gauge; one series for each value of the labels `by`."""
    return Query(_by("max", by, metric(name, *matchers)), legend or _legend(name, by))


def rate(name: str, by: str = "", legend: str = "") -> Query:
    """How fast a counter grows, a second."""
    return Query(_by("sum", by, f"rate({metric(name)}[{WINDOW}])"), legend or _legend(name, by))


def grown(name: str, by: str = "", window: str = "1h", legend: str = "") -> Query:
    """How much a counter grew lately."""
    return Query(_by("sum", by, f"increase({metric(name)}[{window}])"), legend or _legend(name, by))


def each_step(name: str, by: str = "", legend: str = "") -> Query:
    """How much a counter grows in a step, over the last half hour."""
    grown = _by("sum", by, f"increase({metric(name)}[{LONG}])")
    steps = f"max(delta({metric(STEP_PREFIX + 'step')}[{LONG}]) > 0)"
    on = "on() group_left() " if by else ""
    return Query(f"{grown} / {on}{steps}", legend or _legend(name, by))


def names(expr: str) -> list[str]:
    """The metrics that an expression reads, in order."""
    return list(dict.fromkeys(re.findall(rf"\b(?:{RAY}\w+|ALERTS)\b", expr)))


def meaning(name: str) -> tuple[str, str]:
    """A metric's short name and its meaning."""
    if name == "ALERTS":
        return name, "alerts of deploy/prometheus/rules.yml"
    if name in OTHERS:
        return name, OTHERS[name]
    ours = name.removeprefix(RAY + PREFIX)
    one = EXPORTED.get(ours) or EXPORTED[ours.removesuffix("_total")]
    return one.name.removeprefix(STEP_PREFIX), one.meaning


def _by(aggregation: str, by: str, inner: str) -> str:
    return f"{aggregation} by ({by}) ({inner})" if by else f"{aggregation}({inner})"


def _legend(name: str, by: str) -> str:
    return " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",")) if by else name.removeprefix(STEP_PREFIX)
