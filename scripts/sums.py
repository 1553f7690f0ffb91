"""Write the prompts of configs/pipelines/sums.yaml: .venv/bin/python -m scripts.sums [FOLDER]

Sums of two numbers of two digits, each pair once; of the held-out pairs none is trained on, in either order.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "prompts"
ROWS, HELDOUT, SEED = 512, 64, 0
FILES = ("sums.jsonl", "sums_heldout.jsonl")


def write(count: int, heldout: int, seed: int) -> tuple[str, str]:
    """JSON lines to train on, and held-out ones. Fields: `prompt`, `answer`, and `response`, a demonstration."""
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    drawn = random.Random(seed).sample(pairs, count + heldout)
    lines = [json.dumps(_row(*pair, turned=number % 2 == 1)) + "\n" for number, pair in enumerate(drawn)]
    return "".join(lines[:count]), "".join(lines[count:])


def _row(low: int, high: int, turned: bool) -> dict[str, str]:
    a, b = (high, low) if turned else (low, high)
    return {"prompt": f"What is {a} + {b}?", "answer": str(a + b), "response": f"{a} + {b} = {a + b}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    asked = parser.parse_args()
    for file, text in zip(FILES, write(ROWS, HELDOUT, SEED), strict=True):
        (asked.folder / file).write_text(text)
        print(asked.folder / file)


if __name__ == "__main__":
    main()
