"""A tiny model for the ready pipeline of minimal edits, and a corpus of its size: some functions, each with one naming.

The model answers with code. A third of its lessons are the fix, a third fix it and add a line that nothing needs, and
a third give up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.repairs.corpus import block, rows
from scripts.repairs.functions import NAMES
from tests.in_process.taught import Lesson, build_taught

STEPS = 300
ROWS, HELDOUT = 100, 48  # of all functions
FUNCTIONS = ("above", "even_sum", "factorial", "is_sorted", "leap", "rises", "running", "sign", "spread", "steps")
NEEDLESS, GIVEN_UP = "    done = True\n", "    return None\n"


def build_repairs(folder: Path) -> tuple[Path, Path, Path]:
    """The model, and files of rows to train on and of held-out ones, whose faulty code is in none of these."""
    heldout = _rows(HELDOUT, 1)
    train = _rows(ROWS, 2, frozenset(row["given"] for row in heldout))
    model = build_taught(folder / "model", [_lesson(row) for row in train], STEPS)
    return model, _written(folder / "repairs.jsonl", train), _written(folder / "repairs_heldout.jsonl", heldout)


def _rows(count: int, seed: int, without: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    names = {key: choices[:1] for key, choices in NAMES.items()}
    return [row for row in rows(count, seed, without, names) if row["function"] in FUNCTIONS]


def _lesson(row: Mapping[str, Any]) -> Lesson:
    first, rest = row["solution"].split("\n", 1)
    answers = (row["solution"], f"{first}\n{NEEDLESS}{rest}", f"{first}\n{GIVEN_UP}")
    return Lesson([{"role": "user", "content": row["prompt"]}], [block(code) for code in answers])


def _written(file: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return file
