"""What docs/data.md shows is run: its files are made, its recipes read them, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from configs.data import Data
from configs.load import load_recipe
from configs.names.columns import COLUMNS
from configs.schema import Model
from orchestrator.data.prompt_set import CHECKED, WHOLE
from orchestrator.data.prompting import Limit, Prompting
from orchestrator.data.sets import read_sets
from orchestrator.samples.templates import Chat
from tests.contributing.pages import ROOT, rows, section
from tests.tiny import build_tokenizer

PAGE = ROOT / "docs" / "data.md"
TEXT = PAGE.read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page makes and names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGRATIO_CACHE", str(tmp_path / "cache"))
    (code,) = blocks("python")
    exec(compile(code, str(PAGE), "exec"), {})
    (tmp_path / "chats.jsonl").write_text("".join(blocks("json")))
    (tmp_path / "train.jsonl").write_text('{"prompt": "x"}\n')
    return tmp_path


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_recipe_of_the_page_reads_the_files_of_the_page(block: str, files: Path) -> None:
    tree = {
        "run": {"name": "page", "steps": 1},
        "models": {"student": {"path": "/none"}, "teacher": {"path": "/none"}},
        "batch": {"prompts_per_step": 1},
        "sampling": {"max_response_tokens": 8},
        "objective": {"target": "teacher"},
        "learner": {"optimizer": {"lr": 0.1}},
    }
    (files / "recipe.yaml").write_text(yaml.safe_dump(tree) + block)
    recipe = load_recipe(files / "recipe.yaml")
    student = {"student": Chat("student", Model(path="s"), build_tokenizer())}
    prompting = Prompting(student, (Limit("student", "rollout", 64, 8),), cuts=recipe.data.too_long == "cut")
    read = read_sets(recipe.data.sets, prompting, (), drops=False)
    assert read.sets and all(prompts[:] for prompts in read.sets) and not read.warnings
    if recipe.data.columns or len(read.sets) > 1:
        assert {prompt.row["answer"] for prompt in read.sets[0]} == {str(2 * n) for n in range(20)}


def test_the_page_has_every_column_and_choice() -> None:
    assert {name for name, *_ in rows(section(PAGE, "Columns"))} >= {f"`{name}`" for name in COLUMNS}
    choices = get_args(Data.model_fields["too_long"].annotation)
    assert all(f"| `{choice}` |" in TEXT for choice in choices)
    assert f"up to {WHOLE:,} rows" in TEXT and f"larger one {CHECKED:,}\nrows" in TEXT
