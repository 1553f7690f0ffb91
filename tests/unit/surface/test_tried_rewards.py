"""`logratio reward`: the rewards of a recipe on a file of responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from configs.refusal import RecipeError
from orchestrator.cli import app
from tests.unit.recipes import tree, write

RULES = [{"kind": "exact", "weight": 2.0}, {"function": "my_rewards.py:score", "name": "judge"}]
SCORE = 'def score(text):\n    if text == "bad":\n        raise ValueError("no")\n    return len(text)\n'


def lines(*responses: str) -> str:
    rows = [{"prompt": "1+1", "answer": "2", "response": response, "tokens": 3} for response in responses]
    return "\n\n".join(json.dumps(row) for row in rows) + "\n"


def tried(root: Path, text: str, *options: str, rules: list[dict[str, Any]] | None = None) -> Any:
    (root / "my_rewards.py").write_text(SCORE)
    recipe = write(root / "r.yaml", tree({"reward.rules": RULES if rules is None else rules}))
    file = root / "responses.jsonl"
    file.write_text(text)
    return CliRunner().invoke(app, ["reward", str(recipe), "--on", str(file), *options])


def test_each_component_is_shown_with_its_mean_and_what_is_rejected_with_its_reason(tmp_path: Path) -> None:
    done = tried(tmp_path, lines("2", "three", "bad"))
    assert done.exit_code == 0, done.output
    words = [line.replace("│", " ").split() for line in done.output.splitlines()]
    assert ["exact", "2", "0.5", "0", "1"] in words and ["judge", "1", "3", "1", "5"] in words
    assert ["reward", "4", "3", "5"] in words
    assert "1 of 3 responses rejected; a run would skip these samples:" in done.output
    assert "  line 5: reward judge: ValueError: no" in done.output, "blank lines count"


def test_json_has_every_response(tmp_path: Path) -> None:
    found = json.loads(tried(tmp_path, lines("2", "bad"), "--json").stdout)
    assert found["components"]["judge"] == {"weight": 1.0, "mean": 1.0, "least": 1.0, "most": 1.0}
    assert found["reward"] == {"mean": 3.0, "least": 3.0, "most": 3.0}
    first, second = found["responses"]
    assert first == {"line": 1, "reward": 3.0, "components": {"exact": 1.0, "judge": 1.0}, "rejected": None}
    assert second == {"line": 3, "reward": None, "components": {}, "rejected": "reward judge: ValueError: no"}


def test_it_exits_with_1_where_every_response_is_rejected(tmp_path: Path) -> None:
    assert tried(tmp_path, lines("bad")).exit_code == 1


@pytest.mark.parametrize(
    ("text", "rules", "message"),
    [
        ("", None, "is empty; give lines of"),
        ('{"prompt": "p"}\n', None, 'line 1: needs a "response" that is text'),
        ("[1]\n", None, 'line 1: needs a "response" that is text'),
        ("{\n", None, "line 1: is no JSON"),
        ('{"response": "r"}\n', None, "tokenizer.json cannot be read to count tokens"),
        (lines("2"), [], "reward.rules: is empty, so there is nothing to try; add a rule"),
        (lines("2"), [{"function": "my_rewards.py:nothing"}], "cannot be imported (AttributeError"),
    ],
)
def test_what_cannot_be_tried_is_refused(tmp_path: Path, text: str, rules: Any, message: str) -> None:
    done = tried(tmp_path, text, rules=rules)
    assert isinstance(done.exception, RecipeError) and message in str(done.exception)
