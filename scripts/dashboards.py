"""Prometheus and Grafana over the Ray cluster of this machine, on loopback, until Ctrl-C: `make dashboards`.

Nothing is left behind: their data lies in a temporary folder, unless --data names one.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DISCOVERY = "prom_metrics_service_discovery.json"
LOOPBACK = "127.0.0.1"
START_SECONDS = 60.0
END_SECONDS = 10.0
GRAFANA = ("grafana-server", "grafana")  # the second one wants `server`
HOMES = ("/usr/share/grafana", "/usr/local/share/grafana", "/opt/homebrew/opt/grafana/share/grafana")


def main(arguments: Sequence[str] | None = None) -> None:
    asked = _arguments(arguments)
    if shutil.which("prometheus") is None:
        _end("prometheus is not installed: scripts/prometheus.sh installs Debian's; elsewhere, install its release")
    discovery = _discovery(asked.ray)
    with tempfile.TemporaryDirectory(prefix="logratio-dashboards-") as made:
        folder = (asked.data or Path(made)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        _serve(folder, discovery, asked)


def _serve(folder: Path, discovery: Path, asked: argparse.Namespace) -> None:
    """Start what is installed, say where it is, and end it with this process."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the second one is ignored in the background of a script
        signal.signal(number, signal.default_int_handler)
    started: list[subprocess.Popen[bytes]] = []
    try:
        at = f"http://{LOOPBACK}:{asked.prometheus_port}"
        started.append(_prometheus(folder, discovery, asked))
        print(f"prometheus  {at}", flush=True)
        if found := _grafana(folder, at, asked.grafana_port):
            started.append(found)
            print(f"grafana     http://{LOOPBACK}:{asked.grafana_port}/dashboards", flush=True)
        else:
            print(_without_grafana(at), flush=True)
        print("Ctrl-C ends both", flush=True)
        while all(process.poll() is None for process in started):
            time.sleep(0.2)
        _end(f"one of them ended; the end of its log in {folder}:\n{_tails(folder)}")
    except KeyboardInterrupt:
        print()
    finally:
        for process in reversed(started):
            _stop(process)


def prometheus_config(discovery: Path, rules: Path, seconds: int) -> dict[str, Any]:
    """deploy/prometheus/prometheus.yml with this cluster's file, and the rules by their full path."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{seconds}s", "evaluation_interval": f"{seconds}s"}
    config["rule_files"] = [str(rules.absolute())]
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(discovery)]
    return config


def grafana_environment(folder: Path, prometheus: str, port: int) -> dict[str, str]:
    """Grafana on loopback, to be read without a login; its admin's password is nobody's."""
    return {
        "GF_SERVER_HTTP_ADDR": LOOPBACK,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_PROVISIONING": str(DEPLOY / "grafana" / "provisioning"),
        "GF_PATHS_DATA": str(folder / "grafana"),
        "GF_PATHS_LOGS": str(folder / "grafana"),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_SECURITY_ADMIN_PASSWORD": secrets.token_hex(16),
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        "PROMETHEUS_URL": prometheus,
        "LOGRATIO_DASHBOARDS": str(DEPLOY / "grafana" / "dashboards"),
    }


def _prometheus(folder: Path, discovery: Path, asked: argparse.Namespace) -> subprocess.Popen[bytes]:
    config, port = folder / "prometheus.yml", asked.prometheus_port
    config.write_text(yaml.safe_dump(prometheus_config(discovery, asked.rules, asked.interval)))
    command = ["prometheus", "--config.file", str(config), "--storage.tsdb.path", str(folder / "prometheus")]
    command += ["--web.listen-address", f"{LOOPBACK}:{port}"]
    return _started(command, folder / "prometheus.log", port, {})


def _grafana(folder: Path, prometheus: str, port: int) -> subprocess.Popen[bytes] | None:
    """None where Grafana is not installed."""
    found = next((path for name in GRAFANA if (path := shutil.which(name))), None)
    if found is None:
        return None
    command = [found] if Path(found).name == GRAFANA[0] else [found, "server"]
    beside = Path(found).resolve().parents[1]
    home = next((str(path) for path in (beside, *map(Path, HOMES)) if (path / "conf" / "defaults.ini").exists()), None)
    command += ["--homepath", home] if home else []
    return _started(command, folder / "grafana.log", port, grafana_environment(folder, prometheus, port))


def _started(command: Sequence[str], log: Path, port: int, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """A server that answers. In a session of its own: Ctrl-C comes to this process, which ends it."""
    if _answers(port):
        _end(f"port {port} is taken; choose another, see `scripts/dashboards.py --help`")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | variables, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                _end(f"{command[0]} does not start; the end of its log:\n{_tails(log.parent)}")
            time.sleep(0.1)
    except BaseException:
        _stop(process)
        raise
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _discovery(ray: Path) -> Path:
    """The file in which Ray's head names all exporters. It appears some seconds after the cluster has started; a later
    cluster puts its own in that place."""
    file = ray / "session_latest" / DISCOVERY
    print(f"reads the exporters that {file} names", flush=True)
    if not file.exists():
        print(
            "            it is not there yet: no Ray cluster has started here, or --ray must name its folder",
            flush=True,
        )
    return file


def _without_grafana(prometheus: str) -> str:
    return (
        "grafana     not installed (no grafana-server in PATH): no package of Debian; install its release, or import "
        f"deploy/grafana/dashboards/*.json into a Grafana that reads {prometheus}"
    )


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _tails(folder: Path) -> str:
    return "\n".join("\n".join(log.read_text(errors="replace").splitlines()[-5:]) for log in folder.glob("*.log"))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/dashboards.py", description=__doc__)
    ray = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
    parser.add_argument("--ray", type=Path, default=ray, help=f"Ray's temporary folder (default {ray})")
    parser.add_argument("--data", type=Path, help="keep the data in this folder")
    parser.add_argument("--rules", type=Path, default=RULES, help=f"the file of alert rules (default {RULES})")
    parser.add_argument("--interval", type=int, default=10, help="seconds between two scrapes (default 10)")
    parser.add_argument("--prometheus-port", type=int, default=9090)
    parser.add_argument("--grafana-port", type=int, default=3000)
    return parser.parse_args(arguments)


def _end(why: str) -> NoReturn:
    print(f"dashboards: {why}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
