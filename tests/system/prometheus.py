"""A Prometheus server, started as `make dashboards` starts it, and what the boards ask of it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from scripts.boards.queries import names
from tests.deploy.test_boards import BOARDS, panels
from tests.system.head import ROOT, free_port, wait_for

# What no run on simulated members has samples of, and why.
NOWHERE = {
    "ray_vllm_num_requests_running": "no vLLM engine",
    "ray_vllm_num_requests_waiting": "no vLLM engine",
    "ray_vllm_kv_cache_usage_perc": "no vLLM engine",
    "ray_vllm_num_preemptions_total": "no vLLM engine",
    "ray_node_gpus_utilization": "no GPU",
    "ray_memory_manager_worker_eviction_total": "no node runs out of memory",
}
# What a run without a Ray cluster lacks as well. `test_dashboards.py` asks a cluster for them.
OF_A_CLUSTER = {
    "ray_object_store_memory": "no raylet",
    "ray_object_store_available_memory": "no raylet",
    "ray_node_manager_unexpected_worker_failure_total": "no raylet",
    "ray_node_mem_used": "no agent of a node",
    "ray_node_mem_total": "no agent of a node",
    "ray_node_disk_free": "no agent of a node",
}

Raised = Mapping[str, Mapping[str, Mapping[str, float]]]  # what Server.raised gives


class Target(NamedTuple):
    """An expression of a panel, and how its curves are called. `where`: board and panel."""

    where: str
    expr: str
    legend: str

    @property
    def labels(self) -> set[str]:
        """Labels that each sample of an answer must have: those that it is grouped by, and those that are shown."""
        return grouped_by(self.expr) | set(re.findall(r"\{\{(\w+)\}\}", self.legend))


def targets(without: Collection[str] = ()) -> list[Target]:
    """Of all panels, but those that read a metric of `without`."""
    every = (
        Target(where, one["expr"], one.get("legendFormat", "")) for where, panel in panels() for one in panel["targets"]
    )
    return [target for target in every if not {*names(target.expr)} & {*without}]


def grouped_by(expr: str) -> set[str]:
    """Labels that an expression groups or joins series by."""
    groups = re.findall(r"\b(?:by|on|without|ignoring|group_left|group_right) ?\(([^)]*)\)", expr)
    return {label for group in groups for label in re.findall(r"\w+", group)}


def filtered_by(expr: str) -> set[tuple[str, str]]:
    """Metrics, each with a label that an expression chooses its series by."""
    chosen = re.findall(r"\b(ray_\w+|ALERTS)\{([^}]*)\}", expr)
    return {(name, label) for name, matchers in chosen for label in re.findall(r"(\w+) ?(?:=|!)", matchers)}


class Server:
    """A Prometheus server. `run` is the run that the boards show."""

    def __init__(self, address: str, run: str = "") -> None:
        self._address = address
        self._run = run

    def of(self, run: str) -> Server:
        """The same, with another run chosen."""
        return Server(self._address, run)

    def ask(self, expr: str) -> dict[str, float]:
        """The samples of an expression, now: by the values of their labels."""
        return {" ".join(sample["metric"].values()): float(sample["value"][1]) for sample in self._samples(expr)}

    def names(self) -> set[str]:
        return set(self._get("label/__name__/values"))

    def labels(self, name: str) -> dict[str, set[str]]:
        """Labels that all series of a metric have, whenever they were, and their values."""
        series = self._series(name)
        common = set[str].intersection(*map(set, series)) if series else set()
        return {label: {one[label] for one in series} for label in common}

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"}

    def raised(self, since: float, until: float) -> Raised:
        """All alerts between two unix times: {run: {alert: {pending or firing: seconds from `since` to the first}}}.
        The run of an alert of the whole cluster is empty."""
        asked = urllib.parse.urlencode({"query": "ALERTS", "start": since, "end": until, "step": 0.5})
        found: dict[str, dict[str, dict[str, float]]] = {}
        for series in self._get(f"query_range?{asked}")["result"]:
            labels = series["metric"]
            states = found.setdefault(labels.get("run", ""), {}).setdefault(labels["alertname"], {})
            states[labels["alertstate"]] = series["values"][0][0] - since
        return found

    def shown(self, title: str) -> dict[str, float]:
        """What a panel shows."""
        (panel,) = (panel for where, panel in panels() if where.endswith(title))
        return self.ask(*self._written_out(panel["targets"][0]["expr"]))

    def answers(self, target: Target) -> bool:
        """Whether an expression has samples, each with the labels that the panel needs; of every role, if it is
        repeated."""
        answers = map(self._samples, self._written_out(target.expr))
        return all(found and all(target.labels <= one["metric"].keys() for one in found) for found in answers)

    def unanswered(self, silent: Collection[str]) -> list[Target]:
        """Expressions of panels that have no answer, but those that read a metric of `silent`."""
        return [target for target in targets(silent) if not self.answers(target)]

    def choices(self, name: str) -> set[str]:
        """What a board offers for one of its variables. Raises ValueError where boards disagree."""
        variables = [one for board in BOARDS.values() for one in board["templating"]["list"] if one["name"] == name]
        (query,) = {one["query"]["query"] for one in variables}
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert found, query
        return {one[found[2]] for one in self._series(self._chosen(found[1])) if found[2] in one}

    def _written_out(self, expr: str) -> list[str]:
        """An expression as Grafana asks it: variables and windows in place. Without a role there is nothing to ask:
        the variable stays, and has no answer."""
        expr = self._chosen(expr)
        return [expr.replace("$role", role) for role in self.choices("role")] or [expr] if "$role" in expr else [expr]

    def _chosen(self, expr: str) -> str:
        return expr.replace("$__rate_interval", "10s").replace("$run", self._run)

    def _samples(self, expr: str) -> list[dict[str, Any]]:
        return self._get(f"query?{urllib.parse.urlencode({'query': expr})}")["result"]

    def _series(self, selector: str) -> list[dict[str, str]]:
        return self._get(f"series?{urllib.parse.urlencode({'match[]': selector})}")

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._address}/api/v1/{path}", timeout=30) as answer:
            return json.loads(answer.read())["data"]


def firing(raised: Raised) -> dict[str, set[str]]:
    """By run, the alerts that fired."""
    fired = {run: {name for name, states in of.items() if "firing" in states} for run, of in raised.items()}
    return {run: alerts for run, alerts in fired.items() if alerts}


@contextmanager
def prometheus(ray: Path, rules: Path | None = None) -> Iterator[Server]:
    """A server that scrapes what the Ray cluster with this temporary folder exports, each second. `rules`: a file in
    place of the committed one."""
    port = free_port()
    command = [sys.executable, str(ROOT / "scripts" / "dashboards.py"), "--ray", str(ray), "--interval", "1"]
    command += ["--prometheus-port", str(port), "--grafana-port", str(free_port())]
    command += ["--rules", str(rules)] if rules else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        assert process.poll() is None, said
        wait_for(lambda: _ready(port), "Prometheus to be ready", 30.0)
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=10) as answer:
            return answer.status == 200
    except urllib.error.URLError:
        return False
