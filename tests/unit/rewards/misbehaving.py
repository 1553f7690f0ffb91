"""Functions of a user that misbehave as the response's text says. Their process imports this file, so it is light."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def single(text: str, row: Mapping[str, Any]) -> Any:
    """As the text says; else the tokens of the text."""
    if text == "raise":
        raise KeyError("gold")
    if text == "hang":
        _begin_a_child(row)
        time.sleep(1000)
    if text == "exit":
        sys.exit(3)
    if text == "die":
        os._exit(0)
    print("on standard output, which carries no answers")
    return {"none": None, "nan": float("nan"), "word": "1.0", "list": [1.0], "true": True}.get(text, len(text.split()))


def _begin_a_child(row: Mapping[str, Any]) -> None:
    """A process that would outlive the function."""
    child = subprocess.Popen(["sleep", "1000"])
    Path(row["pid"]).write_text(str(child.pid))


async def concurrent(text: str) -> float:
    if text == "hang":
        await asyncio.sleep(1000)
    if text == "block":
        time.sleep(1000)
    await asyncio.sleep(0.2)
    return 1.0


def batch(text: list[str], tokens: list[int]) -> Any:
    if "hang" in text:
        time.sleep(1000)
    if "short" in text:
        return [1.0] * (len(text) - 1)
    if "number" in text:
        return 1.0
    return [None if one == "none" else float(count) for one, count in zip(text, tokens, strict=True)]


async def batch_at_once(text: list[str]) -> list[float]:
    """0.2 s, whatever the number of responses."""
    if "late" in text:
        await asyncio.sleep(1000)
    if "raise" in text:
        raise KeyError("gold")
    if "timeout" in text:
        raise TimeoutError("the judge gave up")
    return list(await asyncio.gather(*(_scored(one) for one in text)))


async def _scored(text: str) -> float:
    await asyncio.sleep(0.2)
    return float(len(text))


def of_chat(messages: list[Mapping[str, Any]]) -> float:
    """Turns, and a tenth for each character of the last."""
    return len(messages) + len(messages[-1]["content"]) / 10.0


def raises(text: str) -> float:
    raise ValueError("the judge is away")


def sometimes(tokens: int) -> float:
    """Rejects responses of odd length."""
    if tokens % 2:
        raise ValueError("odd")
    return 1.0


def needs_more(text: str, gold: str) -> float:
    return float(text == gold)


def asks_for_nothing() -> float:
    return 1.0
