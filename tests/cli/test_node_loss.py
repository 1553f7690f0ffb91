"""Real raylets that vanish in mid-run, on simulated members over Ray: nothing is lost and no process is left."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.own_cluster import drive
from tests.unit.simulation import assert_none_aged, expected_order, metrics, trained

STEPS = 8


def test_nodes_that_vanish_take_no_sample_with_them(tmp_path: Path) -> None:
    drive("tests.cli.node_loss", tmp_path, str(tmp_path), str(STEPS))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["code"] == 0
    assert {"rollout", "scorer.teacher"} & set(result["lost"]["others"]) and "learner" in result["lost"]["learner"]
    uids = [row["uid"] for row in trained(tmp_path)]
    assert sorted(uids) == [uid for _, uid, _ in expected_order(STEPS)]
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, STEPS + 1))
    assert_none_aged(tmp_path, 1)
    summary = json.loads((tmp_path / "sim" / "summary.json").read_text())
    assert summary["learner_rebuilds"] == 1 and summary["skipped"] == {}
