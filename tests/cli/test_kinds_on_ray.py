"""Rollouts of two kinds on a real Ray cluster of two kinds of nodes: each lies on its own, and so do successors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.own_cluster import drive
from tests.unit.simulation import assert_each_once


@pytest.mark.system
def test_members_of_each_kind_lie_on_their_nodes_and_are_replaced_there(tmp_path: Path) -> None:
    drive("tests.cli.two_kinds", tmp_path, str(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["code"] == 0 and result["reserved"]
    assert result["members"] == [["", "small", 0], ["", "small", 1], ["wide", "wide", 1]]
    assert_each_once(tmp_path)
