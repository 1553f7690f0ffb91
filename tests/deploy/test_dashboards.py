"""`make dashboards`: what it starts, where it listens, what it says, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, ROOT
from tests.processes import alive
from tests.system.head import free_port

STAND_IN = """#!{python}
import http.server, json, os, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
asked = arguments[arguments.index("--web.listen-address") + 1] if name == "prometheus" else (
    os.environ["GF_SERVER_HTTP_ADDR"] + ":" + os.environ["GF_SERVER_HTTP_PORT"])
host, port = asked.split(":")
server = http.server.HTTPServer((host, int(port)), http.server.BaseHTTPRequestHandler)
with open(os.path.join({folder!r}, name + ".json"), "w") as file:
    json.dump({{"pid": os.getpid(), "arguments": arguments, "environment": dict(os.environ), "host": host}}, file)
server.serve_forever()
"""


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@contextmanager
def dashboards(folder: Path, ports: tuple[int, int], *installed: str) -> Iterator[subprocess.Popen[str]]:
    """The command, where only stand-ins for the programs `installed` are in PATH."""
    for name in installed:
        (folder / name).write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
        (folder / name).chmod(0o755)
    command = [sys.executable, str(ROOT / "scripts" / "dashboards.py"), "--ray", str(folder / "ray")]
    command += ["--prometheus-port", str(ports[0]), "--grafana-port", str(ports[1])]
    environment = os.environ | {"PATH": str(folder)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(process: subprocess.Popen[str], word: str) -> str:
    """What it says up to a line with this word."""
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if word in line:
            return said
    raise AssertionError(said)


def told(folder: Path, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        file = folder / f"{name}.json"
        if file.exists() and (text := file.read_text()).endswith("}"):
            return json.loads(text)
        time.sleep(0.05)
    raise AssertionError(f"{name} was not started")


def test_both_are_started_on_loopback_with_boards_and_rules_and_end_with_it(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    with dashboards(tmp_path, ports, "prometheus", "grafana-server") as process:
        said = until(process, "Ctrl-C")
        assert f"http://127.0.0.1:{ports[0]}" in said and f"http://127.0.0.1:{ports[1]}" in said
        assert "not there yet" in said, "there is no Ray cluster in that folder"
        prometheus, grafana = told(tmp_path, "prometheus"), told(tmp_path, "grafana-server")
        assert (prometheus["host"], grafana["host"]) == ("127.0.0.1", "127.0.0.1")
        config = yaml.safe_load(Path(_after(prometheus, "--config.file")).read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 0
    assert not alive([prometheus["pid"], grafana["pid"]])
    assert not Path(_after(prometheus, "--storage.tsdb.path")).parent.exists(), "its data is gone"

    discovery = tmp_path / "ray" / "session_latest" / "prom_metrics_service_discovery.json"
    assert config["scrape_configs"][0]["file_sd_configs"][0]["files"] == [str(discovery)]
    assert [Path(file) for file in config["rule_files"]] == [DEPLOY / "prometheus" / "rules.yml"]
    given = grafana["environment"]
    assert given["PROMETHEUS_URL"] == f"http://127.0.0.1:{ports[0]}"
    for variable in _variables(Path(given["GF_PATHS_PROVISIONING"])):
        assert given[variable], f"provisioning reads {variable}"
    assert sorted(file.name for file in Path(given["LOGRATIO_DASHBOARDS"]).iterdir()) == [
        "flow.json",
        "health.json",
        "run.json",
    ]
    assert given["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer" and given["GF_SECURITY_ADMIN_PASSWORD"] != "admin"


def test_without_grafana_it_says_so_and_goes_on(tmp_path: Path, ports: tuple[int, int]) -> None:
    with dashboards(tmp_path, ports, "prometheus") as process:
        said = until(process, "Ctrl-C")
        assert "grafana     not installed" in said and "deploy/grafana/dashboards" in said
        prometheus = told(tmp_path, "prometheus")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
    assert not alive([prometheus["pid"]])


def test_without_prometheus_it_says_how_to_get_it(tmp_path: Path, ports: tuple[int, int]) -> None:
    with dashboards(tmp_path, ports) as process:
        assert process.wait(timeout=15) == 1
        assert process.stdout and "scripts/prometheus.sh" in process.stdout.read()


def test_if_one_of_them_ends_so_does_the_other(tmp_path: Path, ports: tuple[int, int]) -> None:
    with dashboards(tmp_path, ports, "prometheus", "grafana-server") as process:
        until(process, "Ctrl-C")
        prometheus, grafana = told(tmp_path, "prometheus"), told(tmp_path, "grafana-server")
        os.kill(grafana["pid"], signal.SIGKILL)
        assert process.wait(timeout=15) == 1
    assert not alive([prometheus["pid"]])


def _after(told: dict[str, Any], option: str) -> str:
    return told["arguments"][told["arguments"].index(option) + 1]


def _variables(provisioning: Path) -> set[str]:
    """The variables in files that Grafana expands."""
    found = "".join(file.read_text() for file in provisioning.rglob("*.yaml"))
    return {word.strip("${} ,") for word in found.split() if word.startswith("$")}
