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
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.deploy.test_boards import panels
from tests.system.head import ROOT, free_port, wait_for

ROLES = ("rollout", "scorer.teacher", "reward", "learner")

# What a run on simulated members, without a GPU and without a death, has no samples of.
SILENT = {
    "ray_vllm_num_requests_running": "no vLLM engine",
    "ray_vllm_num_requests_waiting": "no vLLM engine",
    "ray_vllm_kv_cache_usage_perc": "no vLLM engine",
    "ray_vllm_num_preemptions_total": "no vLLM engine",
    "ray_node_gpus_utilization": "no GPU",
    "ray_memory_manager_worker_eviction_total": "nothing was killed for want of memory",
    "ray_node_manager_unexpected_worker_failure_total": "nothing died",
    "ALERTS": "no alert",
}


class Server:
    """A Prometheus server. `run` is the run that the boards show."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.run = ""

    def ask(self, expr: str) -> dict[str, float]:
        """The samples of an expression, now: by the values of their labels."""
        found = self._get(f"query?{urllib.parse.urlencode({'query': expr})}")["result"]
        return {" ".join(sample["metric"].values()): float(sample["value"][1]) for sample in found}

    def names(self) -> set[str]:
        return set(self._get("label/__name__/values"))

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"}

    def raised(self, since: float, until: float) -> dict[str, dict[str, dict[str, float]]]:
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

    def unanswered(self, silent: Collection[str]) -> list[tuple[str, str]]:
        """Expressions of panels that have no answer, but those that read a metric of `silent`."""
        return [
            (where, expr)
            for where, panel in panels()
            for target in panel["targets"]
            for expr in self._written_out(target["expr"])
            if not set(re.findall(r"\bray_\w+|ALERTS", expr)) & set(silent) and not self.ask(expr)
        ]

    def _written_out(self, expr: str) -> list[str]:
        """An expression as Grafana asks it: variables and windows in place."""
        expr = expr.replace("$__rate_interval", "10s").replace("$run", self.run)
        return [expr.replace("$role", role) for role in ROLES] if "$role" in expr else [expr]

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._address}/api/v1/{path}", timeout=30) as answer:
            return json.loads(answer.read())["data"]


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
