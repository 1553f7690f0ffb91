"""docs/rewards.md: every example on it is run, on responses written by hand."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from configs.reward_rules import KINDS
from configs.roles.reward import Reward
from orchestrator.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def test_the_reward_of_your_own_can_be_tried(tmp_path: Path) -> None:
    (function,), recipe, (responses,) = blocks("python"), blocks("yaml")[0], blocks("json")
    for name, text in (("my_rewards.py", function), ("recipe.yaml", recipe), ("responses.jsonl", responses)):
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / "recipe.yaml"), "--on", str(tmp_path / "responses.jsonl"), "--json"]
    done = CliRunner().invoke(app, ["reward", *files])
    right, wrong, rejected = json.loads(done.stdout)["responses"]
    assert right["components"] == {"function": pytest.approx(1.0 - 0.03), "overlong": 0.0}
    assert wrong["components"] == {"function": pytest.approx(-0.06), "overlong": 0.0}
    assert rejected["line"] == 3 and f"`{rejected['rejected']}`" in PAGE


@pytest.mark.parametrize("block", [yaml.safe_load(text) for text in blocks("yaml")])
def test_every_reward_on_the_page_is_valid(block: dict[str, Any]) -> None:
    assert Reward.model_validate(block["reward"]).components


FENCE = "```python\n{}\n```"
CASES = [json.loads(line) for line in blocks("jsonl")[0].splitlines()]
WRITTEN: list[tuple[str, list[tuple[dict[str, Any], dict[str, float], float]]]] = [
    ("judge", [({"response": "four"}, {"judge": 4.0}, 4.0), ({"response": "a"}, {"judge": 1.0}, 1.0)]),
    (
        "maths",
        [
            (
                {"answer": "1/2", "response": "<think>half</think> \\boxed{0.5}", "tokens": 3548},
                {"maths": 1.0, "format": 1.0, "overlong": -0.5},
                0.85,
            ),
            ({"answer": "1/2", "response": "It is 2"}, {"maths": 0.0, "format": 0.0, "overlong": 0.0}, 0.0),
        ],
    ),
    (
        "match",
        [
            ({"answers": ["Paris", "Lutetia"], "response": "So.\nAnswer: the paris!"}, {"match": 1.0}, 1.0),
            ({"answers": ["Paris"], "response": "Paris"}, {"match": 0.0, "json_schema": 0.0}, 0.0),
            ({"answers": ["Paris"], "response": '{"steps": ["go"]}'}, {"match": 0.0, "json_schema": 1.0}, 0.2),
            ({"answers": ["Paris"], "response": '{"steps": [1]}'}, {"json_schema": 0.0}, 0.0),
        ],
    ),
    (
        "code",
        [
            (CASES[0] | {"response": FENCE.format("def add(a, b):\n    return a + b")}, {"code": 1.0}, 1.0),
            (CASES[0] | {"response": FENCE.format("def add(a, b):\n    return 3")}, {"code": 0.5}, 0.5),
            (CASES[1] | {"response": FENCE.format("print(sum(map(int, input().split())))")}, {"code": 1.0}, 1.0),
        ],
    ),
]
JUDGE = "def all_at_once(text):\n    return [float(len(one)) for one in text]\n"


@pytest.mark.parametrize(
    ("block", "written"), list(zip(blocks("yaml")[1:], WRITTEN, strict=True)), ids=[n for n, _ in WRITTEN]
)
def test_every_reward_on_the_page_scores_as_its_words_say(
    block: str, written: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "judges.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    tree = yaml.safe_load(blocks("yaml")[0]) | yaml.safe_load(block)
    rows = [{"prompt": "?", "tokens": 9} | row for row, _, _ in written[1]]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / "recipe.yaml"), "--on", str(tmp_path / "responses.jsonl"), "--json"]
    done = CliRunner().invoke(app, ["reward", *files])
    assert done.exit_code == 0, done.output
    for found, (_, components, reward) in zip(json.loads(done.stdout)["responses"], written[1], strict=True):
        assert {name: found["components"][name] for name in components} == pytest.approx(components)
        assert found["reward"] == pytest.approx(reward)


def test_every_kind_is_on_the_page() -> None:
    assert [kind for kind in KINDS if f"`{kind}`" not in PAGE] == []
