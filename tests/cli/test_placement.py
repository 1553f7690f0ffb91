"""Members lie where the recipe's resources say, on a real Ray cluster of two nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.own_cluster import drive


@pytest.mark.system
def test_members_lie_where_their_resources_say(tmp_path: Path) -> None:
    """Node a has the label and the licence; both have 3 CPUs."""
    drive("tests.cli.placed", tmp_path, str(tmp_path / "placed.json"))
    placed = json.loads((tmp_path / "placed.json").read_text())
    assert {placed["learner"], placed["beside it"]} == {"aaa", "bbb"}, "ranks find a whole node, though asked for last"
    assert sorted(placed["apart"][:2]) == ["a", "b"] and placed["apart"][2] == "", "no third node, no third member"
    assert sorted(placed["spread"]) == ["a", "b"]
    assert placed["labelled"] == ["a", "a"] and placed["elsewhere"] == "b"
    assert placed["licensed"] == ["a", ""], "one licence"
    reserved = placed["reserved"]
    assert set(reserved["rollout"]) == {"a", "b"} and reserved["learner"] in ("aa", "bb") and reserved["reward"] == "a"
    assert placed["left"] == 0
