"""Programs of responses are run by the reward members of a cluster: right, wrong, hung and missing ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards.sandbox.isolation import NoIsolation, isolation
from tests.engines.shared import DATASET, Engines

BODIES = {"return x": 1.0, "return 1": 0.5, "while 1: x": 0.0}  # of f, and the share of its cases that pass
CASES = [{"call": "f(2)", "expect": 2}, {"call": "f(1)", "expect": 1}]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four demonstrations: a program with each body, and a text without one."""
    texts = [f"```python\ndef f(x):\n  {body}\n```" for body in BODIES]
    rows = [{"prompt": f"write {i}", "response": text, "tests": CASES} for i, text in enumerate([*texts, "I cannot."])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def test_programs_are_rewarded_on_reward_members(engines: Engines, rows: Path) -> None:
    try:
        isolation()
    except NoIsolation as reason:
        pytest.skip(str(reason))
    rule = {"kind": "code", "partial": True, "cpu_seconds": 1, "wall_seconds": 2, "total_seconds": 3}
    run = engines.run(
        engines.recipe(
            **DATASET,
            data={"prompts": str(rows), "shuffle": False},
            batch={"samples_per_prompt": 1},
            sampling={"max_response_tokens": 64},
            reward={"rules": [rule]},
        )
    )
    assert run.code == 0 and not run.summary["skipped"]
    rewards = [row["reward"] for row in run.samples("step_000001")]
    assert rewards == [*BODIES.values(), 0.0]
