"""Writes benchmarks/RESULTS.md and the README's tables of results from the JSON in benchmarks/results:
`python -m benchmarks results`.

A file is named by its benchmark: `trl-16x48.json` was written by `python -m benchmarks trl --out`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import data, gain, head, machine, start, trl
from benchmarks.metrics import report as metrics
from benchmarks.step import report as step

HERE = Path(__file__).parent
PAGE, README = HERE / "RESULTS.md", HERE.parent / "README.md"
BEGIN, END = "<!-- python -m benchmarks results -->", "<!-- end of results -->"
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


def _head(found: Found) -> str:
    asked = found["asked"]
    passes = "forward and backward" if asked["backward"] else "forward"
    sizes = f"{asked['tokens']} tokens, width {asked['width']}, vocabulary {asked['vocabulary']}, {passes}"
    return "\n".join([f"{sizes}:", "", "```", *head.lines(found), "```"])


def _metrics(found: Found) -> str:
    return "\n".join([f"{found['members']}:", "", metrics.table(found["cost"])])


def compared(readme: str, folder: Path) -> str:
    """The README's text with a row for each pipeline's gain, for the orchestrator's rate in a process and over Ray, and
    for each whole step that was compared with TRL's."""
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    tables = []
    for kind, of in (("gain", gain), ("metrics", metrics), ("trl", trl)):
        rows = [of.row(json.loads(file.read_text())) for file in sorted(folder.glob(f"{kind}-*.json"))]
        tables += [*of.HEAD, *rows, ""] if rows else []
    return "\n".join([before + BEGIN, *tables[:-1], END + after])


KINDS: dict[str, tuple[str, Callable[[Found], str]]] = {
    "data": ("From a large file to the first prompt", data.table),
    "gain": ("A student before and after a pipeline", gain.table),
    "head": ("bf16 head: product rounded to bf16, beside ours in float32", _head),
    "metrics": ("What status, metrics and the live page cost a driver", _metrics),
    "start": ("From the command to the first step", start.table),
    "step": ("Each role alone, against the machine's limits", step.table),
    "trl": ("Whole steps, beside TRL", _trl),
}


def main() -> None:
    PAGE.write_text(page(HERE / "results"))
    README.write_text(compared(README.read_text(), HERE / "results"))
    print(PAGE.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
