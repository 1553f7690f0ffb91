"""Run the tests marked `acceptance`, folder by folder, and write what they gave to docs/acceptance/summary.md.

Tests of a folder share a process, and what its fixtures start. All of them take hours, so they may be run in parts:
arguments go to pytest, and only the rows of what was run are replaced. A row says on which commit, and when. A test
adds a figure to its row with pytest's `record_property(name, value)`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "acceptance" / "results.json"
SUMMARY = RESULTS.with_name("summary.md")
PYTEST = (sys.executable, "-m", "pytest", "-m", "acceptance")
Rows = dict[str, dict[str, Any]]  # by the test's name


def main(arguments: list[str]) -> int:
    """0 if all that was run has passed."""
    wanted, every = collected(arguments), collected([])
    commit()
    rows = {name: row for name, row in _read().items() if name in every}
    failed = False
    for together in dict.fromkeys(map(folder_of, wanted)):
        mine = [name for name in wanted if folder_of(name) == together]
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.xml"
            report = ["-o", "junit_family=xunit1", f"--junitxml={results}"]  # the family that has a place for figures
            failed |= subprocess.run([*PYTEST, *report, *mine], cwd=ROOT, check=False).returncode != 0
            if results.exists():
                rows |= rows_of(ElementTree.parse(results).getroot())
        _write(rows, every)
    print(f"summary: {SUMMARY.relative_to(ROOT)}")
    return int(failed)


def folder_of(name: str) -> str:
    return name.partition("::")[0].rpartition("/")[0]


def collected(arguments: Sequence[str]) -> list[str]:
    """Names of the acceptance tests that pytest finds with these arguments. Ends the program where it fails."""
    found = subprocess.run(
        [*PYTEST, "--collect-only", "-q", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = [line for line in found.stdout.splitlines() if "::" in line]
    if not names:
        sys.exit(f"acceptance: no test was found\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
    return names


def rows_of(results: ElementTree.Element) -> Rows:
    """JUnit's results, a row a test."""
    made = {"commit": commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    return {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": {
            "result": result(case),
            "seconds": round(float(case.get("time", 0))),
            "figures": ", ".join(f"{p.get('name')} {p.get('value')}" for p in case.iter("property")),
            **made,
        }
        for case in results.iter("testcase")
    }


def lines(rows: Mapping[str, Mapping[str, Any]], every: Sequence[str]) -> Iterator[str]:
    """The page: a row for each acceptance test there is."""
    passed = sum(row["result"] == "passed" for row in rows.values())
    yield "# Acceptance"
    yield ""
    yield f"Written by `make acceptance`. Of {len(every)} tests {passed} passed; {len(every) - len(rows)} were not run."
    yield ""
    yield "| test | result | seconds | figures | commit | date |"
    yield "|---|---|---|---|---|---|"
    missing = {"result": "not run", "seconds": "", "figures": "", "commit": "", "date": ""}
    for name in every:
        row = rows.get(name, missing)
        yield f"| `{name}` | " + " | ".join(str(row[key]) for key in missing) + " |"


def result(case: ElementTree.Element) -> str:
    outcomes = {"failure": "failed", "error": "error", "skipped": "skipped"}
    return next((outcomes[child.tag] for child in case if child.tag in outcomes), "passed")


@cache
def commit() -> str:
    """The short hash of HEAD, with a mark if the working tree differed before the first result was written."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def _read() -> Rows:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _write(rows: Rows, every: Sequence[str]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    SUMMARY.write_text("\n".join(lines(rows, every)) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
