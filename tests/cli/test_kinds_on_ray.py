"""Rollouts of two kinds on a real Ray cluster of two kinds of nodes: each lies on its own, and so do successors."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import alive, descendants
from tests.unit.simulation import assert_each_once


@pytest.mark.system
def test_members_of_each_kind_lie_on_their_nodes_and_are_replaced_there(tmp_path: Path) -> None:
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback
    }
    environment.pop("RAY_ADDRESS", None)
    with (tmp_path / "output").open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.two_kinds", str(tmp_path)],
            env=environment,
            stdout=output,
            stderr=output,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        code = driver.wait(timeout=240)
    assert code == 0, (tmp_path / "output").read_text()[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["code"] == 0 and result["reserved"]
    assert result["members"] == [["", "small", 0], ["", "small", 1], ["wide", "wide", 1]]
    assert_each_once(tmp_path)
    assert not alive(descendants(driver.pid))
