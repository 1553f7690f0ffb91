"""The demo: what is kept of a run, and that it reads as the run does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.surface.watch.run_files import RunFiles
from orchestrator.surface.watch.server import DEMO
from scripts.record_demo import LIMIT, SAMPLES, record
from tests import synthetic, tiny

TEXT = "Arr, naïve 🏴\n ship"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose texts are in a real byte-level tokenizer's ids."""
    directory, tokenizer = synthetic.write_run(tmp_path / "run", steps=2), tiny.build_tokenizer()
    tokenizer.save_pretrained(directory / "model")
    (directory / "recipe.yaml").write_text(
        "run: {name: mine, root: /machine/runs, steps: 2}\nmodels: {student: {path: /machine}}\n"
    )
    (directory / "status.json").write_text(json.dumps(synthetic.status_of(2, 2)))
    for path in (directory / "samples").iterdir():
        path.unlink()
    ids = [*tokenizer.encode(TEXT, add_special_tokens=False), tokenizer.eos_token_id]
    for step in (1, 2):
        many = [replace(synthetic.sample(f"s{i:02d}", "", ""), prompt_ids=ids, response_ids=ids) for i in range(9)]
        path = directory / f"samples/step_{step:06d}.rank0.arrow"
        synthetic.write_samples(
            path, many, [[0.5] * len(ids)] * 9, [([[ids[0], ids[9], -1, -1]] * len(ids), [[-0.5, -1, 0, 0]] * len(ids))]
        )
    return directory


def test_a_recorded_run_reads_as_the_run_itself(run: Path, tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    record(run, demo)
    kept, whole = RunFiles(demo), RunFiles(run)
    found, expected = kept.samples.page(2, 0), whole.samples.page(2, 0)
    assert found is not None and expected is not None and found["readable"]
    assert found["samples"] == expected["samples"][:SAMPLES] and found["total"] == SAMPLES
    assert "".join(token[0] for token in found["samples"][0]["tokens"]) == TEXT + "<|im_end|>"
    assert kept.overview()["state"]["text"] == "done" and kept.overview()["rows"] == 2
    assert not [path for path in demo.rglob("*") if path.is_file() and b"/machine" in path.read_bytes()]


def test_only_a_run_that_ended_well_is_kept(run: Path, tmp_path: Path) -> None:
    (run / "summary.json").write_text('{"exit": 3}')
    with pytest.raises(ValueError, match="ended with 0"):
        record(run, tmp_path / "demo")


def test_the_demo_is_whole_small_and_of_no_machine() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert not [path for path in files for word in (b"/root", b"/home", b"/tmp", b"/work") if word in path.read_bytes()]
    demo = RunFiles(DEMO)
    assert demo.overview()["state"]["kind"] == "good" and demo.overview()["recorded"]
    page = demo.samples.page(demo.samples.steps()[-1], 0)
    assert page is not None and page["readable"] and any(token[5] for token in page["samples"][0]["tokens"])
