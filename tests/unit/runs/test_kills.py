"""`kill -9` of the driver at random moments of a run on simulated members, and resumed: nothing shows that it happened.

Moments are drawn in every part of a life, in turn: a checkpoint is written in less than a hundredth of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.load import dump_recipe
from tests.unit.lives import ANYWHERE, ELSEWHERE, PARTS, Moment, Server, server
from tests.unit.simulation import learned, metrics, order_of, recipe, trained

STRICT, AHEAD = "strictly on-policy", "two versions ahead"
OFTEN = "a length curriculum, saved at every step"
LENGTH = {"caps": [4, 8, 16], "steps_per_stage": 2}
ROLLBACK = {"steps_per_stage": 3, "gate": {"eval_length": 8, "minimum": 2.0, "on_fail": "rollback"}}
RECIPES: dict[str, dict[str, Any]] = {
    STRICT: {},
    AHEAD: {"max_staleness": 2},
    OFTEN: {"objective": {"length": LENGTH}, "checkpoint": {"every": 1, "keep": 1}, "learner": {"ranks": 2}},
    "a rollback": {"objective": {"length": LENGTH | ROLLBACK}, "data": {"heldout": "/none"}},
    "an adaptive beta": {
        "objective": {
            "target": "none",
            "outcome": {"weight": 2.0, "baseline": "rloo"},
            "reference": {"model": "teacher", "beta": {"initial": 0.5, "target": 0.08, "horizon": 20.0}},
        }
    },
}


@pytest.fixture(scope="module")
def lives() -> Iterator[Server]:
    with server() as forking:
        yield forking


def prepared(root: Path, name: str) -> Path:
    root.mkdir()
    (root / "recipe.yaml").write_text(dump_recipe(recipe(root, **RECIPES[name])))
    return root


def outcome(root: Path, name: str) -> dict[str, Any]:
    """The result of a run, equal for two that made the same steps. With staleness, the order of samples depends on
    arrival."""
    run, rows, lines = root / "sim", trained(root), metrics(root)
    found: dict[str, Any] = {
        "steps": [line["step"] for line in lines],
        "samples": sorted((uid, prompt) for _, uid, prompt in order_of(rows)),
        "checkpoints": sorted(file.name for file in (run / "checkpoints").iterdir()),
    }
    if name == AHEAD:
        return found
    return found | {
        "learned": learned(root),
        "beta and cap": [(line["beta"], line["response_cap"]) for line in lines],
        "order": order_of(rows),
        "responses": [(row["attempt"], row["response_ids"]) for row in rows],
        "evaluation": json.loads((run / "summary.json").read_text())["evaluation"],
        "weights": [file.read_text() for file in sorted(run.glob("checkpoints/*/simulated/*"))],
    }


def assert_versions_name_one_set_of_weights(root: Path, name: str) -> None:
    """No version number names two sets of weights, not even in a lost step: samples tell the weights of each step."""
    lines, log = metrics(root), root / "sim" / "metrics.jsonl.lost"
    lost = [json.loads(line) for line in dict.fromkeys(log.read_text().splitlines())] if log.exists() else []
    versions = [line["policy_version"] for line in lines]
    assert versions == sorted(versions)
    numbers = versions + [line["policy_version"] for line in lost if line not in lines]
    assert len(set(numbers)) == len(numbers)
    if name != AHEAD:
        began = {f"step_{line['step']:06d}": line["policy_version"] - 1 for line in lines}
        assert all(set(row["versions"]) == {began[row["step"]]} for row in trained(root))


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_killed_at_a_random_moment_and_resumed_equals_the_uninterrupted_one(
    lives: Server, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, rng, exactly = prepared(tmp_path / "whole", name), random.Random(name), 0
    calls, parts = lives.calls(whole), [*PARTS, ELSEWHERE]
    kills = 20 if name == STRICT else len(parts)
    for kill in range(kills):
        root, part = prepared(tmp_path / f"killed_{kill}", name), parts[kill % len(parts)]
        if part == "rewinding":  # which has something to do when a run is resumed
            assert lives.dies(root, Moment("recording", 3 * calls["recording"] // 4))
        assert lives.dies(root, Moment(part, int(0.95 * rng.random() * calls[part])))  # tasks may change their turns
        assert lives.lives(root)
        assert_versions_name_one_set_of_weights(root, name)
        exactly += outcome(root, name) == outcome(whole, name)
    with capsys.disabled():
        print(f"\n{name}: {exactly} of {kills} resumed exactly")
    assert exactly == kills


def test_a_run_killed_again_and_again_equals_the_uninterrupted_one(lives: Server, tmp_path: Path) -> None:
    whole, often, rng = prepared(tmp_path / "whole", OFTEN), prepared(tmp_path / "often", OFTEN), random.Random(1)
    calls, kills = lives.calls(whole)[ANYWHERE], 0
    while lives.dies(often, Moment(ANYWHERE, rng.randrange(calls // 2))):
        kills += 1
    assert kills > 5
    assert_versions_name_one_set_of_weights(often, OFTEN)
    assert outcome(often, OFTEN) == outcome(whole, OFTEN)
