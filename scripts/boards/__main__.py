"""Writes the boards and the alert rules: `python -m scripts.boards`, from the project's folder."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.boards import alerts, flow, health, run

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"


def texts() -> dict[str, str]:
    """The boards, by the names of their files."""
    boards = {"run": run.made(), "flow": flow.made(), "health": health.made()}
    return {f"{name}.json": json.dumps(board, indent=1, sort_keys=True) + "\n" for name, board in boards.items()}


def write() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    boards = {FOLDER / name: text for name, text in texts().items()}
    for file, text in (boards | {alerts.FILE: alerts.text()}).items():
        file.write_text(text)
        print(file)


if __name__ == "__main__":
    write()
