"""What is said of speed is what the benchmarks wrote: no figure is typed by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.results import HERE, PAGE, README, compared, page

RESULTS = HERE / "results"


def test_the_pages_of_results_are_made_from_the_json() -> None:
    remedy = "run `python -m benchmarks results`"
    assert PAGE.read_text() == page(RESULTS), remedy
    assert README.read_text() == compared(README.read_text(), RESULTS), remedy


def test_another_figure_in_the_json_is_another_page(tmp_path: Path) -> None:
    shutil.copytree(RESULTS, tmp_path, dirs_exist_ok=True)
    assert compared(README.read_text(), tmp_path) == README.read_text() and page(tmp_path) == PAGE.read_text()
    for file in tmp_path.glob("trl-*.json"):
        found = json.loads(file.read_text())
        found["logratio"]["tokens_per_second"] += 1.0
        file.write_text(json.dumps(found))
    assert compared(README.read_text(), tmp_path) != README.read_text() and page(tmp_path) != PAGE.read_text()


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_a_result_says_what_it_ran_on(file: Path) -> None:
    found = json.loads(file.read_text())
    assert found["machine"] and found["cores"] and found["date"] and found["versions"]["torch"]
