"""Real raylets that vanish in mid-run, on simulated members over Ray: nothing is lost and no process is left."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

from tests.processes import alive, descendants
from tests.unit.simulation import expected_order, metrics, trained

STEPS = 8


def test_nodes_that_vanish_take_no_sample_with_them(tmp_path: Path) -> None:
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback
    }
    environment.pop("RAY_ADDRESS", None)
    with (tmp_path / "output").open("w") as output:
        command = [sys.executable, "-m", "tests.cli.node_loss", str(tmp_path), str(STEPS)]
        driver = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=output,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        code = driver.wait(timeout=240)
    assert code == 0, (tmp_path / "output").read_text()[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["code"] == 0
    assert {"rollout", "scorer.teacher"} & set(result["lost"]["others"]) and "learner" in result["lost"]["learner"]
    uids = [row["uid"] for row in trained(tmp_path)]
    assert sorted(uids) == [uid for _, uid, _ in expected_order(STEPS)]
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, STEPS + 1))
    assert max(line["staleness_max"] for line in metrics(tmp_path)) <= 1
    summary = json.loads((tmp_path / "sim" / "summary.json").read_text())
    assert summary["learner_rebuilds"] == 1 and summary["skipped"] == {}
    assert not alive(descendants(driver.pid))
