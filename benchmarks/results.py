"""Writes benchmarks/RESULTS.md from the JSON in benchmarks/results: `python -m benchmarks results`.

A file is named by its benchmark: `trl-16x48.json` was written by `python -m benchmarks trl --out`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine, trl
from benchmarks.step import report as step

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
Found = Mapping[str, Any]


def page(folder: Path) -> str:
    """A section a file, in the order of their names."""
    return "\n".join(["# Results", "", "Written by `python -m benchmarks results`.", *_sections(folder)]) + "\n"


def _sections(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text())
        title, body = KINDS[file.stem.partition("-")[0]]
        yield from ("", f"## {title}: {file.stem}", "", machine.line(found), "", body(found))


def _trl(found: Found) -> str:
    return "\n".join(["```", *trl.lines(found), "```"])


KINDS: dict[str, tuple[str, Callable[[Found], str]]] = {
    "step": ("Each role alone, against the machine's limits", step.table),
    "trl": ("Whole steps, beside TRL", _trl),
}


def main() -> None:
    PAGE.write_text(page(HERE / "results"))
    print(PAGE.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
