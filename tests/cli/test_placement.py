"""Members lie where the recipe's resources say, on a real Ray cluster of two nodes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import alive, descendants


@pytest.mark.system
def test_members_lie_where_their_resources_say(tmp_path: Path) -> None:
    """Node a has the label and the licence; both have 3 CPUs."""
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback
    }
    environment.pop("RAY_ADDRESS", None)
    with (tmp_path / "output").open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.placed", str(tmp_path / "placed.json")],
            env=environment,
            stdout=output,
            stderr=output,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        code = driver.wait(timeout=240)
    assert code == 0, (tmp_path / "output").read_text()[-4000:]
    placed = json.loads((tmp_path / "placed.json").read_text())
    assert {placed["learner"], placed["beside it"]} == {"aaa", "bbb"}, "ranks find a whole node, though asked for last"
    assert sorted(placed["apart"][:2]) == ["a", "b"] and placed["apart"][2] == "", "no third node, no third member"
    assert sorted(placed["spread"]) == ["a", "b"]
    assert placed["labelled"] == ["a", "a"] and placed["elsewhere"] == "b"
    assert placed["licensed"] == ["a", ""], "one licence"
    reserved = placed["reserved"]
    assert set(reserved["rollout"]) == {"a", "b"} and reserved["learner"] in ("aa", "bb") and reserved["reward"] == "a"
    assert placed["left"] == 0
    assert not alive(descendants(driver.pid))
