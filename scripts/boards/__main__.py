"""Writes the boards: `python -m scripts.boards`, from the project's folder."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.boards import flow, health, run

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"


def texts() -> dict[str, str]:
    """The files, by name."""
    boards = {"run": run.made(), "flow": flow.made(), "health": health.made()}
    return {f"{name}.json": json.dumps(board, indent=1, sort_keys=True) + "\n" for name, board in boards.items()}


def write() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)


if __name__ == "__main__":
    write()
