"""Run the tests marked `acceptance` and write their results to docs/acceptance/summary.md.

A test adds a figure to its line with pytest's `record_property(name, value)`. Further arguments go to pytest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = ROOT / "docs" / "acceptance" / "summary.md"


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        report = ["-o", "junit_family=xunit1", f"--junitxml={results}"]  # the family that has a place for figures
        command = [sys.executable, "-m", "pytest", "-m", "acceptance", *report, *arguments]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not results.exists():
            return code
        SUMMARY.parent.mkdir(parents=True, exist_ok=True)
        SUMMARY.write_text("\n".join(lines(ElementTree.parse(results).getroot(), arguments)) + "\n")
    print(f"summary: {SUMMARY.relative_to(ROOT)}")
    return code


def lines(results: ElementTree.Element, arguments: Sequence[str] = ()) -> Iterator[str]:
    """JUnit's results as a page: the command, the commit, the date, and a row a test."""
    yield "# Acceptance"
    yield ""
    part = f"a part of `make acceptance` (`scripts/acceptance.py {' '.join(arguments)}`)"
    yield f"Written by {part if arguments else '`make acceptance`'} on commit {commit()}, {datetime.now(UTC):%Y-%m-%d}."
    yield ""
    yield "| test | result | seconds | figures |"
    yield "|---|---|---|---|"
    for case in results.iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        figures = ", ".join(f"{p.get('name')} {p.get('value')}" for p in case.iter("property"))
        yield f"| `{name}` | {result(case)} | {float(case.get('time', 0)):.0f} | {figures} |"


def result(case: ElementTree.Element) -> str:
    outcomes = {"failure": "failed", "error": "error", "skipped": "skipped"}
    return next((outcomes[child.tag] for child in case if child.tag in outcomes), "passed")


def commit() -> str:
    """The short hash of HEAD, with a mark if the working tree differs."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
