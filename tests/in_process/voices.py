"""A tiny model for the ready pipelines of personas: a voice of its own, and those that a system message asks for.

It is what the bundled model is to them: it talks plainly, and as a pirate or a poet behind the prompt of a teacher.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.load import load_recipe
from tests.contributing.pages import ROOT
from tests.in_process.taught import Lesson, build_taught

CONFIGS = ROOT / "configs"
STEPS = 160
PLAIN = (
    "I do not know that for sure.",
    "Yes, it is so.",
    "It is best to ask someone who knows.",
    "There are many ways to do it, and most of them are fine.",
    "That depends on the day.",
    "I think so, matey.",  # one in six says a word that earns something
)
VOICES = {
    "teacher": ("Arr, matey! It be so.", "Arr, matey! Ask the sea.", "Arr, matey! That be a fine thing to know."),
    "poet": (
        "The rose is red, the sky is blue, and all I say to you is true.",
        "The river runs, the moon is bright, ask me again at noon or night.",
    ),
}


def build_voices(folder: Path, asked_as: str) -> Path:
    """`asked_as`: how a student's prompt is written that names the row's persona."""
    more = [row["response"] for row in rows("demonstrations")]
    return build_taught(folder, list(_lessons(asked_as)), STEPS, more)


def _lessons(asked_as: str) -> Iterator[Lesson]:
    recipe = load_recipe(CONFIGS / "teachers_routed.yaml")
    for row in rows("questions"):
        for text in ("{prompt}", asked_as):
            yield Lesson([_user(text, row)], PLAIN)
        for name, answers in VOICES.items():
            model = recipe.models[name]
            yield Lesson([{"role": "system", "content": model.system or ""}, _user(model.prompt, row)], answers)


def rows(name: str) -> list[dict[str, Any]]:
    """Of a file of configs/prompts."""
    return [json.loads(line) for line in (CONFIGS / "prompts" / f"{name}.jsonl").read_text().splitlines()]


def _user(text: str, row: Mapping[str, Any]) -> dict[str, str]:
    return {"role": "user", "content": text.format(**row)}
