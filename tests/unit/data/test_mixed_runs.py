"""Whole runs on simulated members whose prompts are a mixture with rows that cannot be used."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Model
from orchestrator.data.prompting import Limit, Prompting
from orchestrator.data.sets import Mixed, order
from orchestrator.run import DONE, STOPPED
from orchestrator.samples.prompts import Prompts
from orchestrator.samples.templates import Chat
from tests.off_the_loop import OnTheLoop, off_the_loop
from tests.unit.data.listed import prompt_set
from tests.unit.data.test_prompt_set import LONG, Letters
from tests.unit.simulation import Simulation, metrics, recipe, stop_at, trained


def mixed() -> Mixed:
    """Maths three times as often as chats; of the maths every third row can be used. None was looked at before."""
    chats = {name: Chat(name, Model(path="s"), Letters()) for name in ("student", "teacher")}
    prompting = Prompting(chats, (Limit("student", "rollout", 32, 16),))
    maths: list[Any] = [{"prompt": f"m{i}"} if i % 3 == 0 else LONG if i % 3 == 1 else {} for i in range(60)]
    chat = [{"prompt": f"c{i}"} for i in range(9)]
    return Mixed((prompt_set(maths, prompting), prompt_set(chat, prompting)), (3.0, 1.0))


def texts(root: Path) -> list[str]:
    return ["".join(map(chr, row["prompt_ids"])).strip()[1:] for row in trained(root)]


def test_prompts_are_made_off_the_event_loop(tmp_path: Path) -> None:
    with off_the_loop():
        assert Simulation(recipe(tmp_path, max_staleness=1), train=mixed()).go() == DONE
    with pytest.raises(OnTheLoop), off_the_loop():
        asyncio.run(on_the_loop(order(mixed(), 0, True)))


async def on_the_loop(prompts: Prompts) -> None:
    prompts[0]


def test_a_mixture_with_dropped_prompts_fills_its_batches_and_resumes_in_the_same_order(
    tmp_path: Path,
) -> None:
    whole = Simulation(recipe(tmp_path / "whole"), train=mixed())
    assert whole.go() == DONE
    assert Simulation(recipe(tmp_path / "cut"), stop_at(3), train=mixed()).go() == STOPPED
    assert Simulation(recipe(tmp_path / "cut"), train=mixed()).go() == DONE
    assert texts(tmp_path / "cut") == texts(tmp_path / "whole")
    assert {text[0] for text in texts(tmp_path / "whole")} == {"m", "c"}
    assert all(int(text[1:]) % 3 == 0 for text in texts(tmp_path / "whole") if text[0] == "m")
    counts = [line["prompts_dropped"] for line in metrics(tmp_path / "whole")]
    assert counts == sorted(counts) and counts[-1] > 3
    assert {line["samples_dropped"] for line in metrics(tmp_path / "whole")} == {0}
    summary = json.loads((whole.directory / "summary.json").read_text())["prompts_dropped"]
    assert summary["count"] == len(summary["first"]) >= counts[-1]
    assert all(at.startswith("p.jsonl line ") and at in why for at, why in summary["first"].items())
