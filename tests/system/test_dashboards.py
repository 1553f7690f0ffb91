"""Prometheus on the alert rules and on its configuration. `scripts/prometheus.sh` installs it."""

from __future__ import annotations

import subprocess

import pytest

from tests.system.head import ROOT

pytestmark = pytest.mark.system


def test_each_alert_fires_when_deserved_and_none_in_a_clean_run() -> None:
    promtool("test", "rules", "rules_test.yml")


def test_prometheus_takes_the_configuration() -> None:
    """Not kubernetes.yml: Debian builds Prometheus without the discovery of pods."""
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=ROOT / "deploy" / "prometheus",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
