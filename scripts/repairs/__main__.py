"""Write the corpus of configs/pipelines/minimal_edit.yaml: .venv/bin/python -m scripts.repairs [FOLDER]

With no arguments it writes again what lies in configs/prompts; `--rows`, `--heldout` and `--seed` make another corpus.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.repairs.corpus import write

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "prompts"
ROWS, HELDOUT, SEED = 240, 48, 0
FILES = ("repairs.jsonl", "repairs_heldout.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description="Python functions with injected faults, and their fixes.")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--heldout", type=int, default=HELDOUT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    asked = parser.parse_args()
    for file, text in zip(FILES, write(asked.rows, asked.heldout, asked.seed), strict=True):
        (asked.folder / file).write_text(text)
        print(asked.folder / file)


if __name__ == "__main__":
    main()
