"""docs/rewards.md: every example on it is run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from configs.reward_rules import KINDS
from configs.roles import Reward
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


def test_every_kind_is_on_the_page() -> None:
    assert [kind for kind in KINDS if f"`{kind}`" not in PAGE] == []
